"""A graph below a list of entries, restricted: every value is what it was at the places of kept entries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from differential import trace_function
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightint_compile.passes.adaptive_context.kept_entries.calls import Refused
from lightint_compile.passes.adaptive_context.kept_entries.restricting import Restriction
from lightint_compile.passes.adaptive_context.kept_entries.runs import ENTRIES, Run, Runs, extent, part, regrouped
from lightint_compile.passes.analysis.axes.movement import Ref
from lightint_compile.passes.ir.rewriter import Rewriter

COUNT = 5
ENTRY = (2, 3)
Function = Callable[..., Tensor]


class Open(Restriction):
    """Results may have values for every entry."""

    def _check_results(self) -> None:
        pass


def restricted(change: Function, kept: list[int], *beside: Tensor) -> tuple[Tensor, Tensor]:
    """What ``change`` makes of kept entries [u, 2, 3] by the restricted graph, and of all of them at their places.

    It is also given what is ``beside`` them, at most one tensor.
    """
    entries, source = torch.arange(COUNT) * 2 + 1, torch.randn(2 * COUNT + 1, *ENTRY)

    def whole(entries: Tensor, kept: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        return change(source.index_select(0, entries)), kept

    def with_more(entries: Tensor, kept: Tensor, source: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
        return change(source.index_select(0, entries), more), kept

    arguments = {
        "entries": entries,
        "kept": torch.tensor(kept),
        "source": source,
        **dict(zip(["more"], beside, strict=False)),
    }
    program = trace_function(with_more if beside else whole, arguments)
    full = program.graph_module(*arguments.values())[0]
    inputs = program.placeholders()
    restriction = Open(program, Rewriter(program, "test"), inputs[0], inputs[1])
    restriction.apply()
    program.graph_module.recompile()
    found = program.graph_module(*arguments.values())[0]
    result = program.graph.output_node().args[0][0]  # type: ignore[index]
    for axis in range(full.dim()):
        runs = restriction.form(Ref(result, axis))
        if runs is not None:
            full = full.index_select(axis, torch.tensor(places(runs, kept)))
    return found, full


def places(runs: Runs, kept: list[int]) -> list[int]:
    """The places of kept values, counted one by one."""
    found, position = [], 0
    for _ in range(int(runs.outer)):
        for size, own in runs.runs:
            for entry in range(COUNT if own else 1):
                found += [position + value for value in range(int(size))] if not own or entry in kept else []
                position += int(size)
    return found


CASES: dict[str, Function] = {
    "pointwise": lambda memory: memory * 2 + 1,
    "a value for each": lambda memory: memory + torch.linspace(0, 1, COUNT)[:, None, None],
    "interleaved, one chosen": lambda memory: memory.repeat_interleave(2, 0).unflatten(0, (COUNT, 2))[:, 1],
    "padded and cut": lambda memory: F.pad(memory, (0, 0, 0, 0, 1, 2))[1:-2],
    "joined": lambda memory: torch.cat([torch.zeros(1, *ENTRY), memory, torch.ones(2, *ENTRY)]).flatten(0, 1),
    "what is joined likewise": lambda memory: (
        torch.cat([memory, torch.zeros(2, *ENTRY)]) + torch.cat([torch.zeros(COUNT, 1, 1), torch.ones(2, 1, 1)])
    ),
    "a part of something": lambda memory: memory + torch.arange(30.0).view(COUNT, 2, 3)[:, :1],
    "rows picked": lambda memory: memory + torch.randn(4, 3)[torch.tensor([0, 1, 3, 1, 2])][:, None],
    "filled": lambda memory: memory * torch.full((COUNT, 2, 1), 3.0),
    "expanded": lambda memory: memory + torch.arange(3.0).expand(COUNT, 2, 3),
    "behind the axis": lambda memory: memory.permute(1, 0, 2).flatten(0, 1),
    "copies": lambda memory: memory.repeat(3, 1, 1) + torch.randn(3 * COUNT, 1, 3),
    "split": lambda memory: torch.cat([memory, torch.zeros(3, *ENTRY)]).split([COUNT + 1, 2])[0],
    "the last": lambda memory: torch.cat([memory, torch.zeros(3, *ENTRY)])[-1] + 1,
    "the rest": lambda memory: torch.cat([memory, torch.arange(18.0).view(3, *ENTRY)])[COUNT:] + 1,
    "product": lambda memory: memory @ torch.randn(COUNT, 3, 4),
    "attended to": lambda memory: F.scaled_dot_product_attention(
        *(each.flatten(1)[None] for each in (memory, memory, memory))
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kept", [[0, 1, 2, 3, 4], [1, 3], [4]], ids=str)
def test_values_are_those_at_kept_places(name: str, kept: list[int]) -> None:
    if name == "attended to" and len(kept) < COUNT:
        return  # weights are spread over what is left: see test_attention_looks_at_what_is_left
    torch.manual_seed(0)
    found, expected = restricted(CASES[name], kept)
    assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-6)


BESIDE: dict[str, Function] = {
    "a product with itself": lambda memory, square: memory.flatten(1) + (square @ square)[:, :1],
    "met by its own transpose": lambda memory, square: (
        memory.flatten(1) + torch.einsum("ij,ji->ij", square, square)[:, :1]
    ),
    "its own choice": lambda memory, square: memory.flatten(1) + torch.where(square > 0, square, -square)[:, :1],
    "a norm over its rows": lambda memory, square: memory.flatten(1) + F.layer_norm(square, (COUNT, COUNT))[:, :1],
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_beside_is_what_it_was(name: str) -> None:
    """An operand that is given twice, or read across its rows as well, is restricted behind the call."""
    square = torch.arange(25.0).view(COUNT, COUNT) - 12
    found, expected = restricted(BESIDE[name], [1, 3], square)
    whole = BESIDE[name](torch.zeros(COUNT, *ENTRY), square)[[1, 3]]
    assert found.shape == expected.shape == whole.shape and torch.allclose(found, expected, atol=1e-5)


def test_attention_looks_at_what_is_left() -> None:
    """As under a mask that hides the keys of the others: those that meet the entries, and those that stand for them."""
    kept, table = [0, 3], torch.randn(COUNT + 2, 6)
    mask = torch.tensor([True, False, False, True, False, True, True])
    hidden = torch.zeros(COUNT + 2).masked_fill(~mask, -torch.inf)

    def attend(memory: Tensor, bias: Tensor | None = None) -> Tensor:
        query = torch.cat([memory.flatten(1), torch.ones(2, 6)])[None]
        constant = torch.cat([memory.new_full((COUNT, 6), -1.0), memory.new_ones(2, 6)])
        key = (constant * 0.5 + table)[None]
        return F.scaled_dot_product_attention(query, key, key * 2, attn_mask=bias)

    torch.manual_seed(1)
    found, _ = restricted(attend, kept)
    torch.manual_seed(1)
    source = torch.randn(2 * COUNT + 1, *ENTRY)
    expected = attend(source[torch.arange(COUNT) * 2 + 1], hidden)[:, mask]
    assert torch.allclose(found, expected, atol=1e-6)


def test_text_of_as_many_tokens_is_no_memory() -> None:
    text = torch.randn(1, COUNT, 6)
    found, expected = restricted(
        lambda memory: F.scaled_dot_product_attention(memory.flatten(1)[None], text, text), [0, 3]
    )
    assert torch.allclose(found, expected, atol=1e-6)


REFUSED: dict[str, tuple[Function, str]] = {
    "sum": (lambda memory: memory.sum(0), "looks across"),
    "mean": (lambda memory: memory - memory.mean(0, keepdim=True), "looks across"),
    "cumsum": (lambda memory: memory.cumsum(0), "does not treat"),
    "flip": (lambda memory: memory.flip(0), "does not treat"),
    "product": (lambda memory: torch.randn(4, COUNT) @ memory.flatten(1), "looks across"),
    "one of them": (lambda memory: memory[2], "takes one frame"),
    "some of them": (lambda memory: memory[1:], "does not treat"),
    "each apart": (lambda memory: torch.stack(memory.unbind(0)[:2]), "takes one frame"),
    "picked": (lambda memory: memory[torch.tensor([1, 0])], "does not treat"),
    "cut beside": (lambda memory: torch.cat([memory.flatten(), torch.zeros(2)]).view(4, 8), "cuts its operand"),
    "two orders": (
        lambda memory: torch.cat([memory, torch.zeros(5, *ENTRY)]) + torch.cat([torch.zeros(5, *ENTRY), memory]),
        "two orders",
    ),
    "convolved": (lambda memory: F.conv1d(memory.permute(1, 2, 0), torch.ones(4, 3, 3), padding=1), "does not treat"),
    "causal": (
        lambda memory: F.scaled_dot_product_attention(*[memory.flatten(1)[None]] * 3, is_causal=True),
        "does not treat",
    ),
    "product with itself": (
        lambda memory: torch.cat([memory[:, 0], memory[:, 1, :2]], 1) @ torch.cat([memory[:, 0], memory[:, 1, :2]], 1),
        "looks across",
    ),
    "head width": (
        lambda memory: F.scaled_dot_product_attention(*[memory.flatten(1).T[None]] * 3),
        "looks across",
    ),
    "unknown": (lambda memory: torch.linalg.svdvals(memory.flatten(1)), "nothing says how"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused(name: str) -> None:
    change, why = REFUSED[name]
    with pytest.raises(Refused, match=why):
        restricted(change, [0, 3])


# --- drawn programs -------------------------------------------------------------------------------------------------


def drawn_change(data: st.DataObject) -> Function:
    """A chain of operations, drawn while it runs: every one fits the shape that is there."""
    steps: list[tuple[str, Any]] = []

    def apply(step: tuple[str, Any], value: Tensor) -> Tensor:
        kind, more = step
        return OPERATIONS[kind][1](value, more)

    value = torch.zeros(COUNT, *ENTRY)
    for _ in range(data.draw(st.integers(1, 7))):
        kind = data.draw(st.sampled_from(sorted(OPERATIONS)))
        more = OPERATIONS[kind][0](data, value)
        if more is None:
            continue
        steps.append((kind, more))
        value = apply(steps[-1], value)
        if not 0 < value.numel() < 5000:
            steps.pop()
            value = torch.zeros(COUNT, *ENTRY)
            for step in steps:
                value = apply(step, value)

    def change(memory: Tensor) -> Tensor:
        for step in steps:
            memory = apply(step, memory)
        return memory

    return change


def an_axis(data: st.DataObject, value: Tensor) -> int | None:
    return data.draw(st.integers(0, value.dim() - 1)) if value.dim() else None


def a_pair(data: st.DataObject, value: Tensor) -> Tensor:
    """Something of the same shape, or of one on some axes."""
    shape = [size if data.draw(st.booleans()) else 1 for size in value.shape]
    return torch.randn(shape, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 9))))


def a_join(data: st.DataObject, value: Tensor) -> tuple[int, Tensor, bool] | None:
    axis = an_axis(data, value)
    if axis is None:
        return None
    shape = list(value.shape)
    shape[axis] = data.draw(st.integers(1, 3))
    return axis, torch.randn(shape), data.draw(st.booleans())


def a_range(data: st.DataObject, value: Tensor) -> tuple[int, int, int] | None:
    axis = an_axis(data, value)
    if axis is None:
        return None
    start = data.draw(st.integers(0, value.shape[axis] - 1))
    return axis, start, data.draw(st.integers(1, value.shape[axis] - start))


def a_cut(data: st.DataObject, value: Tensor) -> tuple[int, tuple[int, int]] | None:
    axis = an_axis(data, value)
    if axis is None or value.dim() > 5:
        return None
    size = value.shape[axis]
    outer = data.draw(st.sampled_from([each for each in range(1, size + 1) if size % each == 0]))
    return axis, (outer, size // outer)


def some(most: int) -> Callable[[st.DataObject, Tensor], tuple[int, int] | None]:
    def draw(data: st.DataObject, value: Tensor) -> tuple[int, int] | None:
        axis = an_axis(data, value)
        return None if axis is None else (axis, data.draw(st.integers(1, most)))

    return draw


def some_copies(data: st.DataObject, value: Tensor) -> list[int]:
    return [data.draw(st.integers(1, 2)) for _ in value.shape]


def some_padding(data: st.DataObject, value: Tensor) -> list[int] | None:
    axis = an_axis(data, value)
    return None if axis is None else [0, 0] * axis + [data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))]


OPERATIONS: dict[str, tuple[Callable[..., Any], Callable[..., Tensor]]] = {
    "scale": (lambda data, value: 2.0, lambda value, more: value * more + 1),
    "add": (a_pair, lambda value, more: value + more),
    "pair in front": (a_pair, lambda value, more: torch.where(more > 0, value, more)),
    "permute": (
        lambda data, value: data.draw(st.permutations(range(value.dim()))),
        lambda value, more: value.permute(list(more)),
    ),
    "flatten": (
        lambda data, value: data.draw(st.integers(0, value.dim() - 2)) if value.dim() > 1 else None,
        lambda value, more: value.flatten(more, more + 1),
    ),
    "unflatten": (a_cut, lambda value, more: value.unflatten(*more)),
    "join": (a_join, lambda value, more: torch.cat([value, more[1]] if more[2] else [more[1], value], more[0])),
    "range": (a_range, lambda value, more: value.narrow(*more)),
    "interleave": (some(3), lambda value, more: value.repeat_interleave(more[1], more[0])),
    "copies": (some_copies, lambda value, more: value.repeat(*more)),
    "pad": (some_padding, lambda value, more: F.pad(value, more)),
    "linear": (
        lambda data, value: torch.ones(4, value.shape[-1]) if value.dim() else None,
        lambda value, more: F.linear(value, more),
    ),
    "new axis": (
        lambda data, value: data.draw(st.integers(0, value.dim())) if value.dim() < 6 else None,
        lambda value, more: value.unsqueeze(more),
    ),
}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_drawn_programs_hold_what_they_held_at_kept_places(data: st.DataObject) -> None:
    change = drawn_change(data)
    kept = data.draw(st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=COUNT, unique=True).map(sorted))
    try:
        found, expected = restricted(change, kept)
    except Refused:
        assume(False)
    assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-5)


# --- runs -----------------------------------------------------------------------------------------------------------


def test_parts_and_views_of_runs() -> None:
    tokens = Runs((Run(6, True), Run(18)))
    assert extent(tokens, 3) == 36 and extent(ENTRIES, 3) == 3
    assert regrouped([1, tokens, 8], (1, 6, 6, 8), 3) == [1, Runs((Run(1, True), Run(3))), 6, 8]
    assert regrouped([2, tokens], (72,), 3) == [Runs((Run(6, True), Run(18)), 2)]
    assert regrouped([tokens], (4, 9), 3) is None
    found = part(tokens, 18, 30, 3)
    assert found is not None and found.runs == Runs((Run(12),)) and found.start == Runs((Run(6, True),))
    assert part(tokens, 12, 36, 3) is None
