"""Sequences of varying length, joined, cut and folded before repeated blocks; numbers that change from call to call.

Nothing raises, results are eager's, and Dynamo makes no more graphs than for ``aot_eager``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from quick_variants import mostly_slow
from torch import Tensor, nn
from torch._dynamo.utils import counters

Join = Callable[[Tensor, Tensor], Tensor]

JOINS: dict[str, Join] = {
    "both": lambda a, b: torch.cat([a, b], 1),
    "one of them twice": lambda a, b: torch.cat([a, b, a], 1),
    "a part of one": lambda a, b: torch.cat([a[:, : a.shape[1] // 2], b], 1),
    "all but the last": lambda a, b: torch.cat([a, b], 1)[:, :-1],
    "from where the other ends": lambda a, b: torch.cat([a, b], 1)[:, a.shape[1] :],
    "padded to a multiple": lambda a, b: F.pad(torch.cat([a, b], 1), (0, 0, 0, -(a.shape[1] + b.shape[1]) % 4)),
    "padded by the other": lambda a, b: F.pad(a, (0, 0, b.shape[1], 0)),
    "repeated": lambda a, b: torch.cat([a, b], 1).repeat(1, 3, 1),
    "repeated by each": lambda a, b: torch.cat([a.repeat_interleave(2, 1), b], 1),
    "crossed": lambda a, b: (a[:, :, None] + b[:, None]).flatten(1, 2),
    "folded": lambda a, b: torch.cat([a, a, b, b], 1).reshape(2, -1, a.shape[2]),
    "centred": lambda a, b: torch.cat([a, b], 1)[:, (40 - a.shape[1]) // 4 :],
    "with a few more": lambda a, b: torch.cat([a, b, a.new_ones(1, 3, a.shape[2])], 1),
    "the smaller of both": lambda a, b: a[:, : min(a.shape[1], 6)].sum(1, True) + torch.cat([a, b], 1),
}

#: One of each kind of size: a quotient, a difference, a remainder, a product and a minimum, and with them sums.
KINDS = {"a part of one", "from where the other ends", "padded to a multiple", "crossed", "the smaller of both"}


class Block(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, by: Any = 1.0) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / 2).softmax(-1)
        return x + by * self.out((weights @ v).transpose(1, 2).flatten(2))


class Joined(nn.Module):
    def __init__(self, join: Join) -> None:
        super().__init__()
        self.join, self.blocks = join, nn.ModuleList(Block() for _ in range(2))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x = self.join(a, b)
        for block in self.blocks:
            x = block(x)
        return x


class Stepped(nn.Module):
    """A step number and a sigma that reach every block as Python numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: Tensor, sigma: float = 0.5, step: int = 3) -> Tensor:
        for block in self.blocks:
            x = block(x, sigma)
        return x * (1 - sigma) + 0.01 * step


@pytest.fixture(autouse=True)
def fresh() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _sizes(seed: str) -> list[tuple[int, int]]:
    draw = random.Random(seed)
    return [(draw.randint(3, 12), draw.randint(3, 12)) for _ in range(4)]


def _graphs(module: nn.Module, calls: list[tuple[Any, ...]], **how: Any) -> int:
    """How many graphs Dynamo makes for these calls, whose results are compared with eager's."""
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(module, **how)
    with torch.no_grad():
        for call in calls:
            torch.testing.assert_close(compiled(*call), module(*call), rtol=1e-4, atol=1e-4)
    return int(counters["stats"]["unique_graphs"])


def _lightint(delegate: str = "eager") -> dict[str, Any]:
    return {"backend": "lightint", "options": {"preset": "exact", "delegate": delegate, "strict": True}}


@pytest.mark.parametrize("way", mostly_slow(JOINS, quick=KINDS))
def test_sequences_of_varying_length(way: str) -> None:
    torch.manual_seed(0)
    module = Joined(JOINS[way]).eval().requires_grad_(False)
    calls = [(torch.randn(1, i, 8), torch.randn(1, j, 8)) for i, j in _sizes(way)]
    expected = _graphs(module, calls, backend="aot_eager")
    assert _graphs(module, calls, **_lightint()) <= expected


@pytest.mark.parametrize(
    "way", [*(pytest.param(way, marks=pytest.mark.slow) for way in ("both", "centred")), "a part of one"]
)
def test_compiled_regions_hold_for_every_length(way: str) -> None:
    torch.manual_seed(0)
    module = Joined(JOINS[way]).eval().requires_grad_(False)
    calls = [(torch.randn(1, i, 8), torch.randn(1, j, 8)) for i, j in _sizes(way)]
    _graphs(module, calls, **_lightint("inductor"))


@pytest.mark.parametrize(
    ("number", "delegate"),
    [
        ("sigma", "inductor"),
        ("step", "eager"),
        pytest.param("sigma", "eager", marks=pytest.mark.slow),
        pytest.param("step", "inductor", marks=pytest.mark.slow),
    ],
)
def test_python_numbers_that_change_are_no_reason_to_compile_again(number: str, delegate: str) -> None:
    torch.manual_seed(0)
    module = Stepped().eval().requires_grad_(False)
    x = torch.randn(1, 5, 8)
    calls = [(x, 0.9 - 0.1 * i, 3) if number == "sigma" else (x, 0.5, 2 + i) for i in range(5)]
    expected = _graphs(module, calls, backend="inductor" if number == "sigma" else "aot_eager")
    assert _graphs(module, calls, **_lightint(delegate)) <= expected
