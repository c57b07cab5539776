"""The plan of a chunk: the one call that everything decided in a program hangs on."""

from __future__ import annotations

import dataclasses
import operator

import torch
import torch.fx as fx

from lightint_compile.passes.decisions.points import PLAN, DecisionPoint, PlanPoint, point_of
from lightint_compile.passes.decisions.policy import Policy
from lightint_compile.passes.program import Program, fake_mode_of
from lightint_compile.passes.rewriting import KEPT_META


def first_place(graph: fx.Graph, operands: tuple[fx.Node, ...]) -> fx.Node:
    """The first node after all placeholders and ``operands``."""
    waiting = set(operands)
    for node in graph.nodes:
        if node.op != "placeholder" and not waiting:
            return node
        waiting.discard(node)
    return graph.output_node()


def insert_plan(
    program: Program,
    policy: Policy,
    operands: tuple[fx.Node, ...],
    size: torch.SymInt,
    positions: torch.Tensor,
    like: fx.Node | None = None,
) -> fx.Node:
    """The plan of a chunk on ``operands``, as early as they allow; gives the node of its first result, the frames.

    Args:
        size: how many frames it decides on.
        positions: a fake tensor of the dtype and on the device of the frame numbers.
        like: a node whose source line the plan inherits.
    """
    program.graph_module.add_submodule(PLAN, DecisionPoint(PlanPoint(policy)))
    with program.graph.inserting_before(first_place(program.graph, operands)):
        plan = program.graph.call_module(PLAN, operands)
        index = program.graph.call_function(operator.getitem, (plan, 0))
    for node in (plan, index):
        node.meta.update({key: like.meta[key] for key in KEPT_META if key in like.meta} if like else {})
    with fake_mode_of([like or operands[0]]):
        index.meta["val"] = torch.empty((size,), dtype=positions.dtype, device=positions.device)
    plan.meta["val"] = (index.meta["val"], None, None, None)
    return index


def ensure_plan(program: Program, policy: Policy, cameras: fx.Node) -> fx.Node | None:
    """The record of the program's plan, which decides ``policy.steps`` from now on; ``None`` if it has other rules."""
    root = program.graph_module
    plans = [node for node in root.graph.nodes if isinstance(point_of(root, node), PlanPoint)]
    if plans:
        spec = point_of(root, plans[0])
        assert isinstance(spec, PlanPoint)
        if (spec.policy.rules, spec.policy.overlap) != (policy.rules, policy.overlap):
            return None
        spec = dataclasses.replace(spec, policy=dataclasses.replace(spec.policy, steps=policy.steps, each=policy.each))
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
    plan.meta["val"] = (None, None, None, None)
    return plan
