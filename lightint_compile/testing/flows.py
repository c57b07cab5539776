"""Control flow and foreign code around a block of a drawn world."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class _Doubled(torch.autograd.Function):
    """An operator with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Twice ``x``."""
        return x * 2.0

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The gradient of ``x``."""
        return gradients[0] * 2.0


@torch.library.custom_op("lightint_testing::spread", mutates_args=())
def _spread(x: Tensor) -> tuple[Tensor, Tensor]:
    """An operator of the user's with two results, which nobody looks into."""
    return x.mean(-1, keepdim=True).clone(), x * 2.0


@_spread.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(*x.shape[:-1], 1), torch.empty_like(x)


def _spread_backward(ctx: Any, mean: Tensor, doubled: Tensor) -> Tensor:
    return doubled * 2.0 + mean / doubled.shape[-1]


_spread.register_autograd(_spread_backward)


@torch.library.custom_op("lightint_testing::scale_", mutates_args=("x",))
def _scale(x: Tensor) -> None:
    """An operator of the user's that writes into its operand."""
    x.mul_(1.5)


@torch.compiler.disable
def _not_compiled(x: Tensor) -> Tensor:
    return x * 2.0 if float(x.detach().sum()) > 0 else x - 1.0


def _doubled_until(x: Tensor) -> Tensor:
    count = torch.zeros((), dtype=torch.int64)
    return torch._higher_order_ops.while_loop(lambda i, y: i < 2, lambda i, y: (i + 1, y * 1.5), (count, x))[1]


def _by_item(x: Tensor) -> Tensor:
    return x * 2.0 if x.sum().item() > 0 else x


def _broken(x: Tensor) -> Tensor:
    torch._dynamo.graph_break()
    return x


def _through_custom(x: Tensor) -> Tensor:
    mean, doubled = _spread(x)
    return doubled + mean


def _scaled(x: Tensor) -> Tensor:
    copy = x.detach().clone()
    _scale(copy)
    return x + copy


def _turned(x: Tensor) -> Tensor:
    """As rotary embeddings turn by complex numbers."""
    y = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2)).contiguous()
    angles = torch.polar(torch.ones(x.shape[1], 1), torch.arange(x.shape[1])[:, None] * 0.3)
    return torch.view_as_real(torch.view_as_complex(y) * angles).flatten(-2).to(x.dtype)


def _through_numpy(x: Tensor) -> Tensor:
    return x + torch.from_numpy(x.detach().numpy() * 0.5)


def _selected(x: Tensor) -> Tensor:
    """A size that depends on data."""
    return x + x[x > 0].sum() + torch.nonzero(x > 0).shape[0] * 0.01


def _differentiated(x: Tensor) -> Tensor:
    return x + torch.func.grad(lambda y: (y * y).sum())(x)


def _pushed(x: Tensor) -> Tensor:
    return x + torch.func.jvp(torch.sin, (x,), (torch.ones_like(x),))[1]


def _tried(x: Tensor) -> Tensor:
    """An error inside of the model that it catches itself."""
    try:
        return x @ x.new_ones(x.shape[-1] + 1, 1)
    except RuntimeError:
        return x * 2.0


def _scanned(x: Tensor) -> Tensor:
    """A loop over the tokens that writes in place."""
    sums = torch.zeros_like(x)
    for place in range(x.shape[1]):
        sums[:, place] = x[:, place] + (sums[:, place - 1] * 0.5 if place else 0.0)
    return sums


#: What is done to the tokens after the block.
AFTER: dict[str, Callable[[Tensor], Tensor]] = {
    "cond": lambda x: torch.cond(x.sum() > 0, lambda y: y * 2.0, lambda y: y - 1.0, (x,)),
    "while": _doubled_until,
    "break": _broken,
    "vmap": lambda x: torch.func.vmap(lambda row: row * 2.0 + row.sum(0))(x),
    "item": _by_item,
    "reduce": lambda x: x + x.sum().amax() + x.mean().sum(0),
    "disabled": _not_compiled,
    "custom": _through_custom,
    "custom-write": _scaled,
    "function": _Doubled.apply,
    "complex": _turned,
    "numpy": _through_numpy,
    "selected": _selected,
    "func-grad": _differentiated,
    "jvp": _pushed,
    "tried": _tried,
    "loop": _scanned,
}


def flow(how: str, block: nn.Module, x: Tensor, rows: Tensor | None) -> Tensor:
    """A block with control flow around it."""
    if how == "checkpoint":
        return checkpoint(block, x, rows, use_reentrant=False)[0]
    if how == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return block(x, rows)[0].to(x.dtype)
    if how == "grad-off":
        with torch.no_grad():
            return block(x, rows)[0]
    if how == "grad-on":
        with torch.enable_grad():
            return block(x, rows)[0]
    x = block(x, rows)[0]
    return AFTER[how](x) if how in AFTER else x
