"""The plan of a chunk: the one call that everything decided in a program hangs on."""

from __future__ import annotations

import dataclasses
import operator

import torch.fx as fx

from lightint_compile.passes.decisions.points import PLAN, DecisionPoint, PlanPoint, point_of
from lightint_compile.passes.decisions.policy import Policy
from lightint_compile.passes.program import Program


def first_place(graph: fx.Graph, operands: tuple[fx.Node, ...]) -> fx.Node:
    """The first node after all placeholders and ``operands``."""
    waiting = set(operands)
    for node in graph.nodes:
        if node.op != "placeholder" and not waiting:
            return node
        waiting.discard(node)
    return graph.output_node()


def ensure_plan(program: Program, policy: Policy, cameras: fx.Node) -> fx.Node | None:
    """The record of the program's plan, which decides ``policy.steps`` from now on; ``None`` if it has other rules."""
    root = program.graph_module
    plans = [node for node in root.graph.nodes if isinstance(point_of(root, node), PlanPoint)]
    if plans:
        spec = point_of(root, plans[0])
        assert isinstance(spec, PlanPoint)
        if (spec.policy.rules, spec.policy.overlap) != (policy.rules, policy.overlap):
            return None
        spec = dataclasses.replace(spec, policy=dataclasses.replace(spec.policy, steps=policy.steps))
    else:
        spec = PlanPoint(policy)
    root.add_submodule(PLAN, DecisionPoint(spec))
    plan = plans[0] if plans else _new_plan(root.graph, cameras)
    with root.graph.inserting_after(plan):
        record = root.graph.call_function(operator.getitem, (plan, 1))
    record.name = "record"
    record.meta["val"] = None
    return record


def _new_plan(graph: fx.Graph, cameras: fx.Node) -> fx.Node:
    with graph.inserting_before(first_place(graph, (cameras,))):
        plan = graph.call_module(PLAN, (cameras,))
    plan.meta["val"] = (None, None, None)
    return plan
