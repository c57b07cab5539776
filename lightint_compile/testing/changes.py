"""What a user changes of a module's structure between two calls: adapters, shared weights, hooks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class Adapted(nn.Module):
    """A projection with a low-rank addition."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        weight = base.weight
        self.down = nn.Parameter(torch.full((2, weight.shape[1]), 0.1, dtype=weight.dtype), weight.requires_grad)
        self.up = nn.Parameter(torch.full((weight.shape[0], 2), 0.2, dtype=weight.dtype), weight.requires_grad)

    @property
    def weight(self) -> Tensor:
        """The base's, which a model may read as before."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """What the base gives, and the addition."""
        return self.base(x) + x @ self.down.T @ self.up.T


class Halved(nn.Module):
    """A weight in half its size."""

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as the module sees it."""
        return weight * 0.5


def _projections(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Where linear layers are, the prompt's first."""
    children = ((owner, *child) for owner in module.modules() for child in owner.named_children())
    found = [(owner, name) for owner, name, child in children if type(child) is nn.Linear]
    return sorted(found, key=lambda place: place[1] != "project")


def _adapt(module: nn.Module) -> None:
    owner, name = _projections(module)[0]
    setattr(owner, name, Adapted(getattr(owner, name)))


def _parametrize(module: nn.Module) -> None:
    owner, name = _projections(module)[0]
    parametrize.register_parametrization(getattr(owner, name), "weight", Halved())


def _tie(module: nn.Module) -> None:
    """The blocks share a weight."""
    blocks = list(module.get_submodule("blocks").children())
    for block in blocks[1:]:
        block.get_submodule("out").weight = blocks[0].get_submodule("out").weight


def _swap(module: nn.Module) -> None:
    """The blocks change places."""
    blocks = module.get_submodule("blocks")
    assert isinstance(blocks, nn.ModuleList)
    blocks[0], blocks[-1] = blocks[-1], blocks[0]


def _hook(module: nn.Module) -> None:
    module.get_submodule("blocks.0.out").register_forward_hook(lambda owner, given, result: result * 0.5)


def _forward(module: nn.Module) -> None:
    """Another method takes the place of a layer's forward."""
    layer = module.get_submodule("blocks.0.norm")
    layer.forward = lambda x: x * 0.5  # type: ignore[method-assign]


#: How a module changes: ``change(module)``.
CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "adapt": _adapt,
    "parametrize": _parametrize,
    "tie": _tie,
    "swap": _swap,
    "hook": _hook,
    "forward": _forward,
}
