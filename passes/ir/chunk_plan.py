"""The plan of a chunk: the one call on which every decision of a program depends."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.errors import PassError
from lightint_compile.passes.ir.decision_points import PLAN, DecisionPoint, PlanPoint, point_of
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.passes.ir.fake_values import Size
from lightint_compile.passes.ir.frame_numbers import Coming, number_node
from lightint_compile.passes.ir.op_arguments import sizes_of
from lightint_compile.passes.ir.program import Program, fake_mode_of
from lightint_compile.passes.ir.provenance import MADE_BY, origin_of
from lightint_compile.passes.ir.rewriter import KEPT_META


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
    coming: Coming | None = None,
    intrinsics: fx.Node | None = None,
) -> fx.Node:
    """The plan of a chunk on ``operands``, as early as they allow; gives the node of its first result, the frames.

    Args:
        operands: the cameras, then the latents so far.
        size: how many frames it decides on.
        positions: a fake tensor of the dtype and on the device of the frame numbers.
        like: a node whose source line the plan inherits.
        coming: which of the cameras are the coming chunk's; the last of them by default.
        intrinsics: the focal lengths of the cameras, for rules that read them; a field of view of their own else.
    """
    program.graph_module.add_submodule(PLAN, DecisionPoint(_point(policy, coming)))
    further = _further(program, policy, operands[0], coming, intrinsics)
    with program.graph.inserting_before(first_place(program.graph, (*operands, *_nodes(further)))):
        plan = program.graph.call_module(PLAN, operands, further)
        index = program.graph.call_function(operator.getitem, (plan, 0))
    for node in (plan, index):
        node.meta.update(_as_made_for(like) if like else {})
    with fake_mode_of([like or operands[0]]):
        index.meta["val"] = torch.empty((size,), dtype=positions.dtype, device=positions.device)
    plan.meta["val"] = (index.meta["val"], None, None, None)
    return index


def _as_made_for(like: fx.Node) -> dict[str, Any]:
    kept = {key: like.meta[key] for key in KEPT_META if key in like.meta}
    return kept | {MADE_BY: {"pass": "adaptive-context", "rule": "plan", "origin": origin_of(like)}}


def _point(policy: Policy, coming: Coming | None) -> PlanPoint:
    return PlanPoint(policy, cameras=1 if coming is None else coming.step)


def _further(
    program: Program, policy: Policy, cameras: fx.Node, coming: Coming | None, intrinsics: fx.Node | None
) -> dict[str, Any]:
    """What a plan is told by name: the first of the coming frames, unless they are the last; the intrinsics."""
    found: dict[str, Any] = {}
    frames = sizes_of(cameras)[-3]
    if coming is not None and coming.index is not None:
        found["first"] = coming.index
    elif coming is not None and coming.first is not None and not coming.is_last(frames):
        found["first"] = _computed(program, coming.first)
    reads = intrinsics is not None and policy.rules == "adaptive"
    return {**found, "intrinsics": intrinsics} if reads else found


def _computed(program: Program, size: Size) -> fx.Node | int:
    """A size as a number or a node behind the inputs.

    Raises:
        PassError: the inputs do not tell it.
    """
    place = first_place(program.graph, tuple(program.placeholders()))

    def make(target: Any, *args: Any) -> fx.Node:
        with program.graph.inserting_before(place):
            node = program.graph.call_function(target, args)
        values = [arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in args]
        node.meta["val"] = values[0].shape[args[1]] if isinstance(values[0], torch.Tensor) else target(*values)
        return node

    found = number_node(program, size, make)
    if found is None:
        why = f"it is {size}"
        raise PassError("the first of the coming frames cannot be told from the inputs", where="cameras", why=why)
    return found


def _nodes(further: Mapping[str, Any]) -> tuple[fx.Node, ...]:
    return tuple(value for value in further.values() if isinstance(value, fx.Node))


def has_plan(program: Program) -> bool:
    """Whether anything is decided once a chunk already."""
    return plan_policy(program) is not None


def plan_policy(program: Program) -> Policy | None:
    """By what is decided once a chunk, if anything is already."""
    root = program.graph_module
    points = (point_of(root, node) for node in root.graph.nodes)
    return next((point.policy for point in points if isinstance(point, PlanPoint)), None)


def ensure_plan(
    program: Program, policy: Policy, cameras: fx.Node, coming: Coming | None, intrinsics: fx.Node | None
) -> fx.Node | None:
    """The record of the program's plan, which decides ``policy.steps`` from now on; ``None`` if it has other rules."""
    root = program.graph_module
    plans = [node for node in root.graph.nodes if isinstance(point_of(root, node), PlanPoint)]
    if plans:
        spec = point_of(root, plans[0])
        assert isinstance(spec, PlanPoint)
        if not spec.policy.agrees_with(policy):
            return None
        taken = {name: getattr(policy, name) for name in ("steps", "each", "denoising_steps")}
        spec = dataclasses.replace(spec, policy=dataclasses.replace(spec.policy, **taken))
    else:
        spec = _point(policy, coming)
    root.add_submodule(PLAN, DecisionPoint(spec))
    plan = plans[0] if plans else _new_plan(program, policy, cameras, coming, intrinsics)
    with root.graph.inserting_after(plan):
        record = root.graph.call_function(operator.getitem, (plan, 1))
    record.name = "record"
    record.meta["val"] = None
    return record


def _new_plan(
    program: Program, policy: Policy, cameras: fx.Node, coming: Coming | None, intrinsics: fx.Node | None
) -> fx.Node:
    further = _further(program, policy, cameras, coming, intrinsics)
    with program.graph.inserting_before(first_place(program.graph, (cameras, *_nodes(further)))):
        plan = program.graph.call_module(PLAN, (cameras,), further)
    plan.meta["val"] = (None, None, None, None)
    return plan
