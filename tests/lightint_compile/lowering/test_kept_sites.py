"""Which calls of a root graph are kept, and all that they come from."""

from __future__ import annotations

import json

import pytest
import torch
import torch.fx as fx

from lightint_compile.lowering.driver import driver_source
from lightint_compile.lowering.kept_sites import Sites, with_sites
from lightint_compile.lowering.result_memo import Site
from lightint_compile.passes.ir.decision_points import DecisionPoint, PlanPoint
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.passes.ir.node_queries import MEMO

aten = torch.ops.aten


class Root:
    """A root graph under construction."""

    def __init__(self, *inputs: str) -> None:
        self.graph, self.modules = fx.Graph(), {}
        self.inputs = [self.graph.placeholder(name) for name in inputs]

    def region(self, name: str, *args: fx.Node, kept: bool = True, inner=aten.relu.default) -> fx.Node:
        body = fx.Graph()
        value = body.placeholder("x")
        body.output((body.call_function(inner, (value,)),))
        self.modules.setdefault(name, fx.GraphModule({}, body))
        node = self.graph.call_module(name, args)
        if kept:
            node.meta[MEMO] = "text"
        return node

    def point(self, *args) -> fx.Node:
        self.modules["plan"] = DecisionPoint(PlanPoint(Policy()))
        return self.graph.call_module("plan", args)

    def call(self, target, *args) -> fx.Node:
        return self.graph.call_function(target, args)

    def sites(self, *results: fx.Node, constants=()) -> tuple[str, Sites]:
        self.graph.output(tuple(results))
        root = torch.nn.Module()
        for name, module in {**self.modules, **dict.fromkeys(constants)}.items():
            setattr(root, name, torch.ones(2) if module is None else module)
        graph_module = fx.GraphModule(root, self.graph)
        before = str(graph_module.graph)
        copied, sites = with_sites(graph_module, constants)
        assert str(graph_module.graph) == before, "the root that reports show is left as it is"
        return driver_source(copied), sites


def test_each_call_has_a_name_and_sources_of_its_own() -> None:
    root = Root("video", "text", "one", "other")
    video, text, one, other = root.inputs
    first, second = root.region("memo_0", text, one), root.region("memo_0", text, other)
    source, sites = root.sites(first, second, video)
    assert sites.memos == {
        "memo_0_kept_0": Site("memo_0", (1, 2)),
        "memo_0_kept_1": Site("memo_0", (1, 3)),
    }
    assert "self.memo_0_kept_0(text, one)" in source and "self.memo_0_kept_1(text, other)" in source
    assert sites.positions() == {1, 2, 3}


def test_values_between_calls_are_traced_to_arguments_constants_and_other_sites() -> None:
    root = Root("text", "weight", "size")
    text, weight, size = root.inputs
    table = root.graph.get_attr("table")
    first = root.region("memo_0", root.call(aten.mul.Tensor, text, table))
    viewed = root.call(aten.view.default, first, [size])
    plain = root.region("glue_0", weight, kept=False)
    second = root.region("memo_1", viewed, plain)
    _, sites = root.sites(second, constants=("table",))
    assert sites.memos["memo_0_kept_0"] == Site("memo_0", (0, 3))
    assert sites.memos["memo_1_kept_1"] == Site("memo_1", (1, 2), ("memo_0_kept_0",))


@pytest.mark.parametrize("how", ["random", "random region", "decision"])
def test_a_call_whose_sources_cannot_be_told_is_not_kept_and_neither_is_what_comes_from_it(how: str) -> None:
    root = Root("text")
    (text,) = root.inputs
    value = {
        "random": lambda: root.call(aten.rand_like.default, text),
        "random region": lambda: root.region("glue_0", text, kept=False, inner=aten.rand_like.default),
        "decision": lambda: root.point(text),
    }[how]()
    first = root.region("memo_0", value)
    source, sites = root.sites(root.region("memo_1", first), root.region("memo_2", text))
    assert [site.region for site in sites.memos.values()] == ["memo_2"] and "self.memo_0(" in source


def test_the_plan_comes_before_what_is_kept_and_names_what_kept_keys_depend_on() -> None:
    root = Root("history", "cameras", "text", "weight")
    history, cameras, text, weight = root.inputs
    kept = root.region("memo_0", text)
    plan = root.point(root.call(aten.neg.default, cameras), history, (history,), (weight, text))
    source, sites = root.sites(kept, plan)
    assert source.index("self.plan(") < source.index("self.memo_0_kept_0(")
    assert source.index("neg") < source.index("self.plan(")
    assert sites.plan == (3, 2) and sites.positions() == {2, 3}


def test_the_plan_stays_where_it_is_if_moving_it_would_change_random_numbers() -> None:
    root = Root("cameras", "text")
    cameras, text = root.inputs
    kept = root.region("memo_0", text)
    plan = root.point(root.call(aten.rand_like.default, cameras))
    source, _ = root.sites(kept, plan)
    assert source.index("self.memo_0_kept_0(") < source.index("self.plan(")


def test_sites_come_back_from_plain_data() -> None:
    sites = Sites({"a": Site("memo_0", (1, 2), ("b",)), "b": Site("memo_1", ())}, (4, 5))
    assert Sites.from_dict(json.loads(json.dumps(sites.to_dict()))) == sites
