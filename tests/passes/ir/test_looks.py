"""Looks of nodes: equal for what no rule can tell apart, and found anew where anything that is part of one changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.fx as fx
import worldplay_tiny
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightint_compile import capture
from lightint_compile.passes.analysis.token_grid import TokenGrid
from lightint_compile.passes.ir.fake_values import described
from lightint_compile.passes.ir.looks import Looks

aten = torch.ops.aten


def twice() -> tuple[fx.Graph, list[fx.Node]]:
    """The same two operations on two inputs."""
    graph = fx.Graph()
    inputs = [graph.placeholder(name) for name in "xy"]
    calls = [graph.call_function(aten.add.Tensor, (source, source)) for source in inputs]
    calls += [graph.call_function(aten.sum.dim_IntList, (source, [0]), {"keepdim": True}) for source in calls[:2]]
    graph.output(tuple(calls))
    for node in (*inputs, *calls):
        node.meta["val"] = torch.zeros(2)
    return graph, calls


def test_the_same_call_on_other_operands_looks_the_same() -> None:
    _, (one, other, summed, too) = twice()
    looks = Looks()
    assert looks.of(one) == looks.of(other) != looks.of(summed) == looks.of(too)
    assert looks.of(one).value == looks.value(other)


CHANGES: dict[str, Any] = {
    "target": lambda node: setattr(node, "target", aten.mul.Tensor),
    "constant": lambda node: setattr(node, "args", (node.args[0], 1)),
    "wiring": lambda node: setattr(node, "args", (node.args[0], node.graph.find_nodes(op="placeholder")[1])),
    "keyword": lambda node: setattr(node, "kwargs", {"alpha": 2}),
    "value": lambda node: node.meta.update(val=torch.zeros(3)),
    "dtype": lambda node: node.meta.update(val=torch.zeros(2, dtype=torch.float64)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_node_looks_different(change: str) -> None:
    _, (one, other, *_) = twice()
    looks = Looks()
    before, state = looks.of(one), (one.target, one.args, one.kwargs, one.meta["val"])
    CHANGES[change](one)
    assert looks.of(one).call != before.call == looks.of(other).call
    assert (looks.value(one) != before.value) == (change in ("value", "dtype"))
    one.target, one.args, one.kwargs, one.meta["val"] = state
    assert looks.of(one) == before


def test_an_equal_value_in_place_of_another_looks_the_same() -> None:
    _, (one, *_) = twice()
    looks = Looks()
    before = looks.of(one)
    one.meta["val"] = torch.zeros(2)
    assert looks.of(one) == before


def test_replaced_operands_are_seen() -> None:
    graph, (one, other, summed, too) = twice()
    looks = Looks()
    assert looks.of(summed) == looks.of(too)
    joined = graph.call_function(aten.cat.default, ([one, one],))
    joined.meta["val"] = torch.zeros(4)
    assert looks.of(joined) != looks.of(summed)
    before = looks.of(joined)
    joined.args = ([one, other],)
    assert looks.of(joined) != before
    other.replace_all_uses_with(one, propagate_meta=False)
    assert looks.of(joined) == before


_NUMBERS = st.one_of(st.integers(-2, 2), st.booleans(), st.sampled_from([0.0, -0.0, 1.0, 2.0]), st.none(), st.text("a"))
_ARGUMENTS = st.recursive(_NUMBERS, lambda entry: st.lists(entry, max_size=2).map(tuple), max_leaves=4)


@given(_ARGUMENTS, _ARGUMENTS)
def test_calls_look_the_same_exactly_where_their_constants_are(left: Any, right: Any) -> None:
    _, (one, other, *_) = twice()
    one.args, other.args = (one.args[0], left), (other.args[0], right)
    looks = Looks()
    assert (looks.of(one) == looks.of(other)) == (described(left) == described(right))


@given(st.integers(0, 3), st.integers(0, 3))
def test_a_constant_is_no_operand(number: int, place: int) -> None:
    """Numbers of values are plain integers, and so are sizes."""
    graph, (one, *_) = twice()
    looks = Looks()
    assert looks.arguments((number,)) != looks.arguments((list(graph.nodes)[place],))
    assert looks.arguments((one, 1)) == looks.arguments([one, 1]) != looks.arguments((one, 1.0))


def test_symbolic_sizes_are_part_of_a_value() -> None:
    def both(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return x * 2, y * 2, y * 2, y[:-1] * 2

    program = capture.trace(both, (torch.zeros(3, 4), torch.zeros(5, 4)), dynamic={"y": 0})
    looks = Looks()
    fixed, one, other, shorter = [looks.of(node) for node in program.calls(aten.mul.Tensor)]
    assert one == other and len({fixed.value, one.value, shorter.value}) == 3


def test_a_snapshot_remembers_nothing() -> None:
    program = worldplay_tiny.program().snapshot()
    program.fact(TokenGrid)
    assert program._memories and not program.snapshot()._memories
