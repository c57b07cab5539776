"""Blocks of one class that differ, in whatever a trace may depend on, are told apart: compiled, and in a dry run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from blocks_once_calls import called, compiled, measured, once_only, said
from torch import Tensor, nn

from lightint_compile import capture
from lightint_compile.capture import repeated_blocks
from lightint_compile.capture.block_descriptions import Descriptions


class Config:
    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor


class Wider(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 3


COMMON, TABLE = Config(), {}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act, self.last = nn.Linear(8, 8), nn.Tanh(), nn.Identity()
        self.value: Any = 1
        self.config = COMMON

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        y = self.act(self.linear(x))
        if isinstance(self.value, bool):
            y = y + 1
        if isinstance(self.value, float):
            y = y + (2 if str(self.value) == "-0.0" else 3)
        if "extra" in self.__dict__:
            y = y * 5
        if self.config is COMMON:
            y = y * self.config.factor
        if rest and rest[0] is rest[-1]:
            y = y - 2
        return y if self.last is None else self.last(y)


class Model(nn.Module):
    def __init__(self, kind: type[Block] = Block, rest: Callable[[int], tuple[Any, ...]] = lambda place: ()) -> None:
        super().__init__()
        self.blocks, self.rest = nn.ModuleList(kind() for _ in range(3)), rest

    def forward(self, x: Tensor) -> Tensor:
        for place, block in enumerate(self.blocks):
            x = block(x, *self.rest(place))
        return x


class Looks(Block):
    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        return super().forward(x) * TABLE[self]


class ParameterFirst(Model):
    """The first call of a block is of a parameter."""

    def __init__(self) -> None:
        super().__init__(Asks)
        self.start = nn.Parameter(torch.ones(3, 8), False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.start) + x


class Asks(Block):
    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        return self.linear(x) * (2 if isinstance(x, nn.Parameter) else 1)


class ArrayLast(Model):
    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](x)
        return torch.as_tensor(np.add(self.blocks[1](x).numpy(), 1))


def decorated(factor: int) -> type[Block]:
    def times(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapper(self: Block, *args: Any) -> Tensor:
            return forward(self, *args) * factor

        return wrapper

    class Decorated(Block):
        forward = times(Block.forward)  # type: ignore[assignment]

    return Decorated


def of_two_classes() -> Model:
    model = Model()
    first, second = decorated(2), decorated(3)
    model.blocks = nn.ModuleList([first(), first(), second(), second()])
    return model


def changed(change: Callable[[Block], object], place: int) -> Callable[[], Model]:
    def make() -> Model:
        model = Model()
        change(model.blocks[place])  # type: ignore[arg-type]
        return model

    return make


class Listed(list[int]):
    """What it holds is not among its attributes."""


class Numbered(int):
    pass


PAIR = Config(), Config()
CHANGES: dict[str, Callable[[Block], object]] = {
    "class of a module": lambda block: setattr(block, "act", nn.Sigmoid()),
    "class without attributes": lambda block: setattr(block, "act", nn.Identity()),
    "subclass": lambda block: setattr(block, "linear", Wider(8, 8)),
    "module that is none": lambda block: setattr(block, "last", None),
    "hook": lambda block: block.act.register_forward_hook(lambda module, given, result: result * 3),
    "boolean": lambda block: setattr(block, "value", True),
    "float": lambda block: setattr(block, "value", 1.0),
    "negative zero": lambda block: setattr(block, "value", -0.0),
    "attribute more": lambda block: setattr(block, "extra", None),
    "another object": lambda block: setattr(block, "config", Config()),
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    **{f"{name}, {place}": changed(change, place) for name, change in CHANGES.items() for place in (0, 1, 2)},
    "table": lambda: Model(Looks),
    "one object twice": lambda: Model(rest=lambda place: (PAIR[0], PAIR[place % 2])),
    "parameter first": ParameterFirst,
    "array": ArrayLast,
    "two classes of one code": of_two_classes,
}
SLOW = {f"{name}, {place}" for at, name in enumerate(CHANGES) for place in (0, 1, 2) if place != at % 3}
"""Further places of a change that one other place shows by default."""


def marked(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]().eval().requires_grad_(False)
    TABLE.clear()
    TABLE.update({block: place + 1.0 for place, block in enumerate(model.blocks)})  # type: ignore[arg-type]
    return model


@pytest.fixture(autouse=True)
def _fresh(fresh_dynamo: None) -> None:
    """Nothing is compiled before."""


@once_only
@pytest.mark.parametrize("name", marked(MODELS))
def test_blocks_that_differ_are_told_apart(name: str) -> None:
    model, x = made(name), torch.randn(3, 8)
    torch.testing.assert_close(called(compiled(model), x), called(model, x))


@once_only
@pytest.mark.parametrize("name", marked(name for name in MODELS if name not in ("table", "array")))
def test_so_they_are_in_a_dry_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = made(name), torch.randn(3, 8)
    by_blocks = capture.trace(model, (x,))
    monkeypatch.setattr(repeated_blocks, "reuses_regions", lambda: False)
    plain = capture.trace(model, (x,))
    shown = [
        [(node.name, str(node.target), str(node.args)) for node in each.graph.nodes] for each in (by_blocks, plain)
    ]
    assert sorted(map(str, shown[0])) == sorted(map(str, shown[1]))


@once_only
@pytest.mark.parametrize(
    ("place", "change"),
    [
        pytest.param(place, change, marks=[pytest.mark.slow] * ((at + place // 2) % 2))
        for at, change in enumerate(CHANGES)
        for place in (0, 2)
    ],
)
def test_so_are_those_that_differ_later(place: int, change: str) -> None:
    if change in ("hook", "attribute more"):
        pytest.skip("Dynamo itself looks for these when it traces, and not later")
    torch.manual_seed(0)
    model, x = Model().eval().requires_grad_(False), torch.randn(3, 8)
    function = compiled(model)
    assert torch.equal(called(function, x), called(model, x)) and measured(function)
    CHANGES[change](model.blocks[place])  # type: ignore[arg-type]
    model.requires_grad_(False)
    torch.testing.assert_close(called(function, x), called(model, x))


@once_only
def test_a_module_that_cannot_be_looked_at_is_traced_plainly() -> None:
    x = torch.randn(3, 8)
    listed = Model().eval().requires_grad_(False)
    listed.modules = [1]  # type: ignore[assignment,method-assign]
    forward = compiled(listed)
    torch.testing.assert_close(called(forward, x), called(listed, x))
    assert said(forward)


def test_descriptions_are_equal_for_copies_and_name_what_is_shared() -> None:
    block = Block()
    same, other = copy.deepcopy(block), copy.deepcopy(block)
    same.config = other.config = block.config
    other.act.inplace = True  # type: ignore[assignment]
    texts = Descriptions([block, same, other])
    assert texts.of(block) == texts.of(same) != texts.of(other)
    assert texts.of(block) is not None and texts.of(copy.deepcopy(block)) is None
    for one, another in ((Listed([1]), Listed([2])), (Numbered(1), Numbered(2)), ({1: 1}, {1: True})):
        same.value, other.value = one, another
        other.act = copy.deepcopy(same.act)
        texts = Descriptions([same, other])
        assert texts.of(same) != texts.of(other)
    cyclic = copy.deepcopy(block)
    cyclic.owner = [cyclic]  # type: ignore[assignment]
    assert Descriptions([cyclic]).of(cyclic)
