"""Which nodes can be computed on smaller tensors: the rules run forward over the graph, and nothing is changed."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.axes.factors import Layout, shared
from lightint_compile.passes.analysis.axes.plans import Blocked, Plan
from lightint_compile.passes.analysis.axes.table import movement_of
from lightint_compile.passes.analysis.row_repeats.layout import is_picked, repeats
from lightint_compile.passes.analysis.row_repeats.picks import Allowed, masked, none, picked
from lightint_compile.passes.analysis.row_repeats.rules import REPETITIONS, plan_of
from lightint_compile.passes.ir.effects import draws_random
from lightint_compile.passes.ir.op_arguments import sizes_of
from lightint_compile.passes.ir.op_families import Family
from lightint_compile.passes.ir.program import tensor_of


@dataclass(frozen=True)
class Sunk:
    """A node with a small version.

    Attributes:
        plan: how to compute it.
        args, kwargs: the node's arguments when it was analysed; a rewrite changes them underneath.
        seeded: whether a real repetition reaches it; a constant fill alone is not worth a rewrite.
        works: whether arithmetic lies between the repetition and it.
    """

    plan: Plan
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    seeded: bool
    works: bool


@dataclass
class Analysis:
    """Nodes with a small version, and where and why repetition ended otherwise than by meeting other rows."""

    sunk: dict[fx.Node, Sunk] = field(default_factory=dict)
    blocked: dict[fx.Node, Blocked] = field(default_factory=dict)

    def layout(self, node: fx.Node) -> Layout:
        """The layout of a node's value."""
        found = self.sunk.get(node)
        return shared(sizes_of(node)) if found is None else found.plan.result


def analyse(graph: fx.Graph, given: Mapping[fx.Node, Layout] | None = None, picks: Allowed = none) -> Analysis:
    """Run the rules over ``graph``; ``given`` are layouts of nodes to suppose, ``picks`` says which picks to follow."""
    analysis = Analysis()
    for node, layout in (given or {}).items():
        analysis.sunk[node] = Sunk(Plan((layout,), computes=False), (), {}, seeded=True, works=False)
    for node in graph.nodes:
        if node.op == "call_function" and node not in analysis.sunk:
            _visit(node, analysis, picks)
        if node not in analysis.sunk and (mask := masked(node, picks)) is not None:
            analysis.sunk[node] = Sunk(mask, node.args, dict(node.kwargs), seeded=True, works=False)
    return analysis


_MAY_START = frozenset((*Family.FILL.value, *Family.INDEX_SELECT.value, torch.ops.aten.index.Tensor))


def _visit(node: fx.Node, analysis: Analysis, picks: Allowed) -> None:
    reached = [analysis.sunk[o] for o in node.all_input_nodes if o in analysis.sunk]
    starts = node.target in REPETITIONS
    if not reached and not starts and node.target not in _MAY_START:
        return
    found = _apply(node, analysis, picks)
    if isinstance(found, Blocked):
        if any(entry.seeded for entry in reached) and not found.mixes:
            analysis.blocked[node] = found
    elif repeats(found.result):
        seeded = starts or any(entry.seeded for entry in reached) or any(map(is_picked, found.result))
        works = found.computes or any(entry.works for entry in reached)
        analysis.sunk[node] = Sunk(found, node.args, dict(node.kwargs), seeded, seeded and works)


def _apply(node: fx.Node, analysis: Analysis, picks: Allowed) -> Plan | Blocked:
    if node.target is operator.getitem:
        return _element(node, analysis)
    if draws_random(node):
        return Blocked("it draws random numbers anew for every row")
    movement = movement_of(node)
    if movement is None:
        return Blocked(f"no rule for {node.target}")
    return picked(node, movement, analysis.layout, picks) or plan_of(node, movement, analysis.layout)


def _element(node: fx.Node, analysis: Analysis) -> Plan | Blocked:
    """One of several results."""
    parent, number = node.args[:2]
    if parent not in analysis.sunk:
        return Blocked("its parent does not repeat", mixes=True)
    if tensor_of(node) is None:
        return Blocked("the element is not a tensor")
    result = analysis.sunk[parent].plan.results[number]  # type: ignore[index]
    return Plan((result,), {parent: result}, computes=False)  # type: ignore[dict-item]
