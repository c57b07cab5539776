"""Modules that add keys to dictionaries of theirs in their first calls are traced once these are there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import lightint_compile
from lightint_compile.acceleration.settling import Settling


class Noting(nn.Module):
    """Writes down the grid of its tokens; text goes another way."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.notes: dict[str, Any] = {"heads": 2}

    def forward(self, tokens: Tensor, text: bool = False) -> Tensor:
        return self.blocks[0](tokens) if text else self.vision(tokens)

    def vision(self, tokens: Tensor) -> Tensor:
        self.notes["grid"] = list(tokens.shape[1:])
        for block in self.blocks:
            tokens = tokens + torch.tanh(block(tokens)) * self.notes["grid"][0] / self.notes["heads"]
        return tokens


class Plain(Noting):
    """Has the key already."""

    def __init__(self) -> None:
        super().__init__()
        self.notes["grid"] = []


class Aside(Noting):
    """The key is written where no call comes along."""

    def vision(self, tokens: Tensor) -> Tensor:
        return self.blocks[1](tokens) * self.notes["heads"]

    def note(self) -> None:
        self.notes["grid"] = [1]


class Never(Noting):
    """The key is written on a way that is not taken."""

    def vision(self, tokens: Tensor) -> Tensor:
        if tokens.shape[0] > 9:
            self.notes["grid"] = [1]
        return self.blocks[1](tokens)


class Routed(Noting):
    """Hands its keywords on: those of text fit another method alone."""

    def forward(self, tokens: Tensor, text: bool = False, **more: Any) -> Tensor:
        return self.told(tokens, **more) if text else self.seen(tokens=tokens, **more)

    def told(self, tokens: Tensor, *, length: int) -> Tensor:
        return self.blocks[0](tokens) * length

    @torch.no_grad()
    def seen(self, *, tokens: Tensor | None = None, scale: float) -> Tensor:
        return super().vision(tokens) * scale


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs(model: nn.Module, *calls: dict[str, Any]) -> list[int]:
    """How many graphs there are after each call, whose results are compared."""
    torch.manual_seed(0)
    expected, found = type(model)().eval(), []
    expected.load_state_dict(model.state_dict())
    with torch.no_grad(), lightint_compile.accelerate(model.eval(), preset="exact", delegate="eager"):
        for call in calls:
            tokens = torch.randn(1, 4, 8)
            torch.testing.assert_close(model(tokens, **call), expected(tokens, **call))
            found.append(counters["stats"]["unique_graphs"])
    return found


VISION: dict[str, Any] = {}
TEXT: dict[str, Any] = {"text": True}


def test_the_first_call_of_each_kind_runs_as_it_is_until_the_key_is_there() -> None:
    assert graphs(Noting(), TEXT, VISION, VISION, TEXT, VISION) == [0, 0, 1, 2, 2]


def test_a_kind_that_comes_again_is_traced_whatever_is_missing() -> None:
    assert graphs(Noting(), TEXT, TEXT, VISION, VISION) == [0, 1, 1, 2]
    torch._dynamo.reset()
    counters.clear()
    assert graphs(Never(), VISION, VISION, VISION) == [0, 1, 1]


@pytest.mark.parametrize("kind", [Plain, Aside])
def test_without_such_a_key_the_first_call_is_traced(kind: type[Noting]) -> None:
    assert graphs(kind(), VISION, VISION) == [1, 1]


def test_a_call_that_cannot_get_to_the_key_is_traced_at_once() -> None:
    settling = Settling(Routed())
    assert not settling.is_due((), {"text": True, "length": 3})
    assert settling.is_due((), {"scale": 0.5}) and not settling.is_due((), {"scale": 0.5})


def test_what_tells_kinds_of_calls_apart() -> None:
    settling, tokens = Settling(Noting()), torch.zeros(1, 2, 8)
    calls: list[dict[str, Any]] = [{}, {"cache": True}, {"cache": False}, {"mask": None}, {"mask": tokens}]
    assert all(settling.is_due((tokens,), call) for call in calls)
    assert not any(settling.is_due((tokens + 1,), call) for call in calls)
    assert settling.is_due((tokens[0],), {})
