from __future__ import annotations

import math
import operator

import pytest
import torch
import torch.fx as fx

from lightint_compile.passes.ir.matching import (
    Either,
    Failure,
    MatchError,
    Number,
    Op,
    Var,
    match,
    matches,
    number_of,
    op,
)
from lightint_compile.passes.ir.op_arguments import arguments

aten = torch.ops.aten
x, y, factor = Var("x"), Var("y"), Number("factor")


class Graph:
    """A graph under construction: calls return nodes."""

    def __init__(self) -> None:
        self.graph = fx.Graph()

    def __call__(self, target, *args, **kwargs) -> fx.Node:
        return self.graph.call_function(target, args, kwargs)

    def inputs(self, *names: str) -> list[fx.Node]:
        return [self.graph.placeholder(name) for name in names]


@pytest.fixture
def graph() -> Graph:
    return Graph()


def test_a_pattern_binds_nodes_and_numbers_and_lists_what_it_matched(graph: Graph) -> None:
    (a,) = graph.inputs("a")
    scaled = graph(aten.mul.Tensor, a, 0.5)
    soft = graph(aten.softmax.int, scaled, -1)
    found = match(op(aten.softmax.int, op(aten.mul.Tensor, x, factor), Number("dim")), soft)
    assert found and found["x"] is a and found["factor"] == 0.5 and found["dim"] == -1
    assert found.nodes == (soft, scaled)


def test_a_commutative_operation_matches_both_ways(graph: Graph) -> None:
    (a,) = graph.inputs("a")
    flipped = graph(aten.mul.Tensor, 0.5, a)
    assert match(op(aten.mul.Tensor, x, factor, commutative=True), flipped)["x"] is a
    assert not match(op(aten.mul.Tensor, x, factor), flipped)


def test_alternatives_leave_a_tag_and_are_taken_back(graph: Graph) -> None:
    a, b = graph.inputs("a", "b")
    form = Either("form", both=op(aten.add.Tensor, x, x), first=op(aten.add.Tensor, x, y))
    assert match(form, graph(aten.add.Tensor, a, b)).tags == {"form": "first"}
    assert match(form, graph(aten.add.Tensor, a, a)).tags == {"form": "both"}


def test_every_way_to_match_is_yielded_in_order(graph: Graph) -> None:
    a, b = graph.inputs("a", "b")
    found = list(matches(op(aten.add.Tensor, x, y, commutative=True), graph(aten.add.Tensor, a, b)))
    assert [(one["x"], one["y"]) for one in found] == [(a, b), (b, a)]


def test_a_repeated_variable_must_be_one_value(graph: Graph) -> None:
    a, b = graph.inputs("a", "b")
    pattern = op(aten.div.Tensor, op(aten.exp.default, x), op(aten.sum.dim_IntList, op(aten.exp.default, x)))
    ea, eb = graph(aten.exp.default, a), graph(aten.exp.default, b)
    assert match(pattern, graph(aten.div.Tensor, ea, graph(aten.sum.dim_IntList, ea, [-1], True)))
    result = match(pattern, graph(aten.div.Tensor, ea, graph(aten.sum.dim_IntList, eb, [-1], True)))
    assert not result and result.failure.node is b
    assert "not the same value as x" in result.failure.render()[0]


def test_a_miss_keeps_the_attempt_that_got_furthest(graph: Graph) -> None:
    (a,) = graph.inputs("a")
    inner = graph(aten.tanh.default, a)
    node = graph(aten.softmax.int, graph(aten.mul.Tensor, inner, 0.5), -1)
    deep = op(aten.softmax.int, op(aten.mul.Tensor, op(aten.mm.default, x, y), factor))
    result = match(Either("form", short=op(aten.log_softmax.int, x), deep=deep), node)
    assert not result and len(result.nodes) == 2
    assert result.failure.node is inner and result.tags == {"form": "deep"}
    assert "aten.mm" in result.failure.render()[0]


def test_reasons_are_formatted_only_when_read() -> None:
    def explode() -> str:
        raise AssertionError("formatted too early")

    error = MatchError("code", None, explode, "a hint")
    assert error.failure.code == "code"
    assert Failure("code", None, lambda: "late", "hint").render() == ("late", "hint")


def test_numbers_are_read_through_the_nodes_that_hold_them(graph: Graph) -> None:
    (a,) = graph.inputs("a")
    infinite = graph(aten.full.default, [2, 2], -math.inf)
    assert number_of(infinite) == -math.inf
    assert number_of(graph(aten.expand.default, infinite, [3, 2, 2])) == -math.inf
    assert number_of(graph(aten.scalar_tensor.default, 2.5)) == 2.5
    assert number_of(graph(aten.zeros_like.default, a)) == 0.0
    assert number_of(graph(aten.ones.default, [3])) == 1.0
    assert number_of([-1]) == -1 and number_of([1, 2]) is None
    assert number_of(a) is None and number_of(graph(aten.neg.default, infinite)) is None


def test_a_constant_kept_as_an_attribute_is_a_number_when_it_has_one_element() -> None:
    root = torch.nn.Module()
    root.one, root.many = torch.tensor(3.0), torch.ones(2)
    graph = fx.Graph()
    one, many = graph.get_attr("one"), graph.get_attr("many")
    graph.output((one, many))
    fx.GraphModule(root, graph)
    owned = [node for node in graph.nodes if node.op == "get_attr"]
    assert [number_of(node) for node in owned] == [3.0, None]


def test_arguments_go_by_schema_name_with_defaults(graph: Graph) -> None:
    a, b = graph.inputs("a", "b")
    given = arguments(graph(aten.add.Tensor, a, b))
    assert given == {"self": a, "other": b, "alpha": 1}
    assert arguments(graph(aten.add.Tensor, a, b, alpha=2))["alpha"] == 2
    assert arguments(graph(operator.getitem, a, 0)) == {"0": a, "1": 0}


def test_an_operand_beyond_the_call_does_not_fit(graph: Graph) -> None:
    (a,) = graph.inputs("a")
    assert not match(Op((aten.exp.default,), (x, y)), graph(aten.exp.default, a))
