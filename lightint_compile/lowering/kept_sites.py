"""Calls of a root graph whose results are kept between calls, and everything that each result depends on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.fx as fx
from torch._ops import HigherOrderOperator

from lightint_compile.lowering.result_memo import SLOTS, STEP_SLOTS, WEIGHT_SLOTS, Site
from lightint_compile.passes.ir.decision_points import (
    PlanPoint,
    PointSpec,
    RowsPoint,
    VisitPoint,
    is_region_call,
    point_of,
)
from lightint_compile.passes.ir.effects import is_pure
from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.ir.node_queries import MEMO, STEPS, WEIGHTS, is_scalar


@dataclass(frozen=True)
class Sites:
    """What a driver keeps between calls.

    Attributes:
        memos: calls of regions by the name that the driver's source calls them by.
        plan: positions of the arguments that kept keys and values depend on, the plan's operands left out.
        outside: in a program that is one step of a loop outside, positions of all but its latent and its timestep.
    """

    memos: Mapping[str, Site] = field(default_factory=dict)
    plan: tuple[int, ...] = ()
    outside: tuple[int, ...] = ()

    def positions(self) -> set[int]:
        """All arguments that kept results, keys and values come from."""
        return {*self.plan, *(each for site in self.memos.values() for each in site.inputs)}

    def to_dict(self) -> dict[str, Any]:
        """Plain data; :meth:`from_dict` takes it back."""
        memos = {name: site.to_dict() for name, site in self.memos.items()}
        return {"memos": memos, "plan": list(self.plan), "outside": list(self.outside)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sites:
        """The inverse of :meth:`to_dict`."""
        memos = {name: Site.from_dict(site) for name, site in data["memos"].items()}
        return cls(memos, tuple(data["plan"]), tuple(data["outside"]))


def with_sites(root: fx.GraphModule, constants: Iterable[str]) -> tuple[fx.GraphModule, Sites]:
    """A root that calls what is kept by names of its own, and what those are; ``root`` itself is left as it is.

    What is asked of the driver comes first, so that one transfer answers it and everything that is kept. A marked call
    whose sources are unknown, because they follow a decision or a side effect, is not kept.

    Args:
        constants: names of the tensors that the program holds itself; their positions follow those of the arguments.
    """
    copied = _plan_first(root)
    sources, memos = _Sources(copied, constants), dict[str, Site]()
    for node in copied.graph.nodes:
        if is_region_call(copied, node) and node.meta.get(MEMO):
            site = sources.site(node)
            if site is not None:
                sources.names[node] = f"{node.target}_kept_{len(memos)}"
                memos[sources.names[node]] = site
    plan, outside = sources.of_plan(), sources.of_visit()
    for node, name in sources.names.items():
        node.target = name
    return copied, Sites(memos, plan, outside)


class _Sources:
    """Where the values of a root graph come from.

    Attributes:
        names: the calls that are kept, by node; they are sources themselves.
    """

    def __init__(self, root: fx.GraphModule, constants: Iterable[str]) -> None:
        self._root = root
        inputs = [node for node in root.graph.nodes if node.op == "placeholder"]
        self._position = {node: place for place, node in enumerate(inputs)}
        self._held = {name: len(inputs) + place for place, name in enumerate(constants)}
        self.names: dict[fx.Node, str] = {}

    def site(self, node: fx.Node) -> Site | None:
        """All that a call comes from, but the numbers it is given; ``None`` where that cannot be told.

        Numbers are compared themselves. A size would name the tensor that it is a size of.
        """
        given = [each for each in node.all_input_nodes if not is_scalar(each)]
        found = reached(given, lambda each: () if each in self.names else each.all_input_nodes)
        ends = [self._end(each) for each in found if each not in self.names]
        if None in ends:
            return None
        inputs = sorted({place for end in ends if end for place in end})
        upstream = sorted(self.names[each] for each in found & self.names.keys())
        slots = {STEPS: STEP_SLOTS, WEIGHTS: WEIGHT_SLOTS}.get(node.meta[MEMO], SLOTS)
        return Site(str(node.target), tuple(inputs), tuple(upstream), slots)

    def of_plan(self) -> tuple[int, ...]:
        """The arguments that the plan is told kept values depend on."""
        plan = _asked(self._root, PlanPoint)
        listed = plan.args[3] if plan is not None and len(plan.args) > 3 else ()
        assert isinstance(listed, (tuple, list))
        return tuple(self._position[node] for node in listed if isinstance(node, fx.Node))

    def of_visit(self) -> tuple[int, ...]:
        """All arguments of a step of a loop outside that stay what they are from step to step."""
        visit = _asked(self._root, VisitPoint)
        if visit is None:
            return ()
        given = (place for node, place in self._position.items() if node not in visit.args[:2])
        return (*given, *self._held.values())

    def _end(self, node: fx.Node) -> tuple[int, ...] | None:
        """The argument that ``node`` is, none where it is computed, ``None`` where its value is more than computed."""
        if node.op == "placeholder":
            return (self._position[node],)
        if node.op == "get_attr":
            return (self._held[str(node.target)],) if node.target in self._held else None
        return () if _only_computes(self._root, node) else None


def _only_computes(root: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node computes its value from its arguments and does nothing else, so that it may be moved or kept."""
    if node.op == "call_module":
        region = root.get_submodule(str(node.target))
        return isinstance(region, fx.GraphModule) and all(_only_computes(region, each) for each in region.graph.nodes)
    return node.op != "call_function" or (not isinstance(node.target, HigherOrderOperator) and is_pure(node))


def _asked(root: fx.GraphModule, kind: type[PointSpec]) -> fx.Node | None:
    """The first call that asks the driver for a decision of a kind."""
    return next((node for node in root.graph.nodes if isinstance(point_of(root, node), kind)), None)


def _plan_first(root: fx.GraphModule) -> fx.GraphModule:
    """A copy with the plan in front of everything but the inputs, then which rows differ, where that may be.

    What these are computed from goes with them.
    """
    early: dict[fx.Node, None] = {}
    for asked in (_asked(root, PlanPoint), _asked(root, RowsPoint)):
        needed = set() if asked is None else reached([asked], lambda node: node.all_input_nodes)
        if all(_only_computes(root, node) for node in needed if node is not asked and node not in early):
            early |= dict.fromkeys(node for node in root.graph.nodes if node in needed)
    inputs = [node for node in root.graph.nodes if node.op == "placeholder"]
    rest = [node for node in root.graph.nodes if node.op != "placeholder"]
    graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in dict.fromkeys((*inputs, *early, *rest)):
        made[node] = graph.node_copy(node, made.__getitem__)
    return fx.GraphModule(root, graph)
