"""Blocks that are traced once: the numbers, the graph and the guards are those of a trace of every call."""

from __future__ import annotations

import copy
import gc
import re
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
import zoo
from blocks_once_calls import called, compiled, measured, once_only, said
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_variants import mostly_slow
from torch import Tensor, nn

from lightint_compile import torch_frames
from lightint_compile.torch_frames import opens_frames


class Gate(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))
        self.power = 2

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight**self.power


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square()


class Block(nn.Module):
    """Everything that a guard may be about: weights, a missing one, constants, a table, modes, and a list."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.linear, self.last = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.gate: nn.Module = Gate(width)
        self.register_buffer("table", torch.arange(float(width)))
        self.scale, self.names = 0.5, ["a", "b"]
        self.settings = {"clip": 3.0}
        self.norm: nn.Module | None = None

    def shifted(self, x: Tensor) -> Tensor:
        return x + self.table.cos() * len(self.names)

    def forward(self, x: Tensor, factor: Tensor) -> Tensor:
        y = self.gate(self.linear(self.shifted(x))) * self.scale
        y = F.dropout(y, 0.0, self.training) + (y if self.training else 0)
        if self.norm is not None:
            y = self.norm(y)
        if self.last.bias is not None:
            y = y - 1
        return x + self.last(y).clamp(max=self.settings["clip"]) * factor


class Model(nn.Module):
    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for step in range(2):
            factor = x.mean() + step
            for block in self.blocks:
                x = block(x, factor)
        return x


def made(depth: int = 4) -> Model:
    torch.manual_seed(0)
    return Model(depth).eval().requires_grad_(False)


def guards_of(function: Callable[..., Tensor], *args: Any) -> set[str]:
    """The guards of the one trace of a call: kind, source and arguments, without the numbers of Dynamo's names."""
    seen: list[Any] = []
    with torch_frames._watched(lambda guards, _: seen.append(guards)):
        called(function, *args)
    guards = [each for trace in seen for each in trace]
    return {re.sub(r"_c?\d+(?=')", "", f"{kind} {source.name} {rest} {named}") for kind, source, rest, named in guards}


@pytest.fixture(autouse=True)
def _fresh(fresh_dynamo: None) -> None:
    """Nothing is compiled before."""


@once_only
def test_guards_and_results_are_those_of_a_plain_trace() -> None:
    module, x = made(), torch.randn(3, 8)
    plain = guards_of(compiled(module, trace_blocks_once=False), x)
    torch._dynamo.reset()
    function = compiled(module)
    assert plain <= guards_of(function, x)
    assert torch.equal(called(function, x), called(module, x))
    assert measured(function) == 2 * 4 - 2 and not said(function)  # the first block is given an input, the others none


QUICK = ("wan", "cosmos", "ltx")


@once_only
@pytest.mark.parametrize("name", mostly_slow(zoo.names(), quick={"wan"}))
def test_transformers_of_diffusers_have_every_guard(name: str) -> None:
    module, inputs = zoo.build(name)
    module.eval().requires_grad_(False)

    def call(function: Any) -> list[Tensor]:
        torch.manual_seed(0)
        results = pytree.tree_leaves(function(**inputs))
        return [each for each in results if isinstance(each, Tensor)]

    plain, by_blocks = compiled(module, trace_blocks_once=False), compiled(module)
    every = guards_of(call, plain)
    torch._dynamo.reset()
    assert every <= guards_of(call, by_blocks)
    for found, expected in zip(called(call, by_blocks), called(call, module), strict=True):
        torch.testing.assert_close(found, expected)
    assert measured(by_blocks) or said(by_blocks)
    assert measured(by_blocks) or name not in QUICK


def _other_linear(block: Block) -> None:
    block.linear = nn.Linear(8, 8, dtype=torch.float64).float().requires_grad_(False)


CHANGES: dict[str, Callable[[Block], None]] = {
    "constant": lambda block: setattr(block, "scale", 0.25),
    "inner constant": lambda block: setattr(block.gate, "power", 3),
    "dictionary": lambda block: block.settings.update(clip=0.1),
    "list": lambda block: block.names.append("c"),
    "another module": lambda block: setattr(block, "gate", Squared()),
    "another module of the class": _other_linear,
    "a module that was missing": lambda block: setattr(block, "norm", nn.LayerNorm(8).requires_grad_(False)),
    "a bias that was missing": lambda block: setattr(block.last, "bias", nn.Parameter(torch.ones(8), False)),
    "a bias less": lambda block: setattr(block.linear, "bias", None),
    "mode": lambda block: setattr(block, "training", True),
    "data": lambda block: setattr(block.linear.weight, "data", block.linear.weight.data * 2),
    "another tensor": lambda block: setattr(block, "table", torch.ones(8)),
    "another dtype": lambda block: setattr(block, "table", torch.ones(8, dtype=torch.float16)),
    "another size": lambda block: setattr(block, "table", torch.ones(1)),
    "another layout": lambda block: setattr(block, "table", torch.ones(16)[::2]),
    "own forward": lambda block: setattr(block, "forward", lambda x, factor: x * factor),
    "own method": lambda block: setattr(block, "shifted", lambda x: x * 3),
    "tied": lambda block: setattr(block.gate, "weight", nn.Parameter(block.linear.weight[0], False)),
}
"""What a user may do to a block between two calls."""
ALIKE = {
    "inner constant",
    "another module of the class",
    "a bias that was missing",
    "another size",
    "another layout",
    "own method",
}
"""Changes of which another one shows the kind: of a number, of a module, of what was missing, of a tensor, of code."""


@once_only
@pytest.mark.parametrize(
    ("place", "change"),
    [
        pytest.param(place, change, marks=[pytest.mark.slow] * (at % 3 != turn or change in ALIKE))
        for at, change in enumerate(CHANGES)
        for turn, place in enumerate((0, 2, 3))
    ],
)
def test_what_is_done_to_a_block_later_is_noticed(place: int, change: str) -> None:
    module, x = made(), torch.randn(3, 8)
    function = compiled(module)
    called(function, x)
    assert measured(function)
    CHANGES[change](module.blocks[place])  # type: ignore[arg-type]
    expected = called(copy.deepcopy(module), x)
    torch.testing.assert_close(called(function, x).double(), expected.double(), rtol=1e-5, atol=1e-6)


@once_only
@settings(max_examples=4, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(sorted(CHANGES))), min_size=1, max_size=3))
def test_blocks_that_differ_before_and_after_the_first_call(changes: list[tuple[int, str]]) -> None:
    torch._dynamo.reset()
    module, x = made(), torch.randn(3, 8)
    function = compiled(module)
    for place, change in changes:
        torch.testing.assert_close(
            called(function, x).double(), called(copy.deepcopy(module), x).double(), rtol=1e-5, atol=1e-6
        )
        CHANGES[change](module.blocks[place])  # type: ignore[arg-type]
    torch._dynamo.reset()
    again = compiled(module)
    expected = called(copy.deepcopy(module), x).double()
    torch.testing.assert_close(called(again, x).double(), expected, rtol=1e-5, atol=1e-6)


@once_only
def test_sizes_that_change_and_a_class_that_changes() -> None:
    module = made()
    function = compiled(module)
    for rows in (3, 5, 7):
        x = torch.randn(rows, 8)
        assert torch.equal(called(function, x), called(module, x))
    own = Block.forward
    try:
        Block.forward = lambda self, x, factor: own(self, x, factor) * 2  # type: ignore[method-assign]
        x = torch.randn(7, 8)
        expected = called(copy.deepcopy(module), x)
        torch._dynamo.reset()
        assert torch.equal(called(compiled(module), x), expected)
    finally:
        Block.forward = own  # type: ignore[method-assign]


@once_only
def test_a_shared_module_and_tied_blocks() -> None:
    module, x = made(), torch.randn(3, 8)
    module.blocks[2].gate = module.blocks[0].gate
    module.blocks[3].table = module.blocks[1].table
    function = compiled(module)
    assert torch.equal(called(function, x), called(module, x))
    module.blocks[2].gate = Gate(8).requires_grad_(False)
    assert torch.equal(called(function, x), called(module, x))


class Breaks(Block):
    def forward(self, x: Tensor, factor: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return super().forward(x, factor)


class Counts(Block):
    calls = 0

    def forward(self, x: Tensor, factor: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x, factor) + self.calls


@once_only
@pytest.mark.parametrize("kind", [Breaks, Counts])
def test_what_cannot_be_traced_once_is_traced_plainly(kind: type[Block]) -> None:
    module, x = made(), torch.randn(3, 8)
    module.blocks = nn.ModuleList(kind() for _ in range(3)).eval().requires_grad_(False)
    function = compiled(module)
    for _ in range(2):
        expected = called(copy.deepcopy(module), x)
        assert torch.equal(called(function, x), expected)
    assert not measured(function)
    assert said(function) and all(each.startswith("Dynamo traced every call of a block: ") for each in said(function))


class Caching(Block):
    """Keys and values in a buffer of the block, and in one that the caller hands over."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(6, 8))

    def forward(self, x: Tensor, factor: Tensor, *, cache: list[Tensor], start: int = 1) -> Tensor:  # type: ignore[override]
        x = super().forward(x, factor)
        self.kept[start : start + 3] = x
        self.kept.mul_(0.5)
        cache[0][:3].copy_(x + self.kept.sum())
        return x + cache[0].mean() + cache[1][: x.shape[0]]


class CachingModel(Model):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Caching() for _ in range(4))

    def forward(self, x: Tensor, caches: list[list[Tensor]]) -> Tensor:  # type: ignore[override]
        for step in range(2):
            for place, (block, cache) in enumerate(zip(self.blocks, caches, strict=True)):
                with torch.autocast("cpu", torch.bfloat16, enabled=step == 1):
                    x = block(x, x.mean(), cache=cache, start=2 if place == 3 else 1).float()
        return x


@once_only
def test_caches_that_blocks_write_to() -> None:
    torch.manual_seed(0)
    module = CachingModel().eval().requires_grad_(False)
    other, function = copy.deepcopy(module), compiled(module)
    caches = [[torch.randn(5, 8), torch.randn(4, 8)] for _ in range(4)]
    others = copy.deepcopy(caches)
    for change in (None, "data", "constant"):
        if change:
            CHANGES[change](module.blocks[2])  # type: ignore[arg-type]
            CHANGES[change](other.blocks[2])  # type: ignore[arg-type]
        x = torch.randn(3, 8)
        torch.testing.assert_close(called(function, x, caches), called(other, x, others))
        torch.testing.assert_close(caches, others)
        torch.testing.assert_close(dict(module.named_buffers()), dict(other.named_buffers()))
    assert measured(function) or said(function)


class Picks(Block):
    def forward(self, x: Tensor, factor: Tensor) -> Tensor:
        return torch.cat([x, x[x[:, 0] > factor]])


@once_only
def test_sizes_that_depend_on_data() -> None:
    module = made()
    module.blocks = nn.ModuleList(Picks() for _ in range(3)).eval().requires_grad_(False)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        function = compiled(module)
        for _ in range(2):
            x = torch.randn(6, 8)
            assert torch.equal(called(function, x), called(module, x))
    assert any("depends on data" in each for each in said(function))


@once_only
def test_why_nothing_is_traced_once() -> None:
    x = torch.randn(3, 8)
    single, tied = made(1), made()
    tied.blocks[0].linear.weight = tied.blocks[0].last.weight
    for module, why in ((single, "several modules of one class"), (tied, "one tensor differs between blocks")):
        function = compiled(module)
        assert torch.equal(called(function, x), called(module, x))
        (message,) = said(function)
        assert why in message


@once_only
def test_an_error_of_the_caller_is_raised_as_ever() -> None:
    module = made()
    with pytest.raises(Exception, match=r"size|shape"):
        called(compiled(module), torch.randn(3, 7))
    x = torch.randn(3, 8)
    assert torch.equal(called(compiled(module), x), called(module, x))


@once_only
def test_a_fault_in_the_guards_is_no_fault_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightint_compile import torch_guards

    def failing(*_: Any) -> None:
        raise ValueError("a guard that cannot be made")

    monkeypatch.setattr(torch_guards._Guard, "made", failing)
    module, x = made(), torch.randn(3, 8)
    function = compiled(module)
    assert torch.equal(called(function, x), called(module, x))
    (message,) = said(function)
    assert "a guard that cannot be made" in message


@pytest.mark.skipif(opens_frames(), reason="this torch is one that traces a block once")
def test_another_torch_says_that_it_traces_every_call() -> None:
    module, x = made(), torch.randn(3, 8)
    function = compiled(module)
    assert torch.equal(called(function, x), called(module, x))
    (message,) = said(function)
    assert torch.__version__ in message


@pytest.mark.parametrize("kind", [Block, Breaks])
def test_a_model_that_is_gone_is_held_by_nobody(kind: type[Block]) -> None:
    module, x = made(), torch.randn(3, 8)
    module.blocks = nn.ModuleList(kind() for _ in range(3)).eval().requires_grad_(False)
    called(compiled(module), x)
    gone = weakref.ref(module)
    del module
    torch._dynamo.reset()
    gc.collect()
    assert gone() is None


def test_nothing_of_dynamos_is_left_changed() -> None:
    def places() -> Iterator[Any]:
        from torch._dynamo.symbolic_convert import InstructionTranslatorBase

        yield InstructionTranslatorBase.inline_user_function_return
        yield vars(Block)["forward"]

    before = list(places())
    called(compiled(made()), torch.randn(3, 8))
    assert list(places()) == before
