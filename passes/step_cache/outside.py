"""A branch around the one step of a program whose loop is outside: what earlier calls predicted, or the step.

first  = block_0(...)
visit  = self.visit(latent, timestep, cameras, first)     # which step of which chunk the runtime takes this for
step   = choose(visit[0], step_reuse, step_compute, (..., visit[2], visit[3], visit[4]))
self.predicted(visit[1], step[0])
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.loop_marks import MarkedStep
from lightint_compile.passes.analysis.outer_step import OuterStep, marked_outer_step
from lightint_compile.passes.analysis.world import contradicted, intrinsics_of
from lightint_compile.passes.base import PassResult
from lightint_compile.passes.ir.chunk_plan import has_plan
from lightint_compile.passes.ir.decision_points import (
    DecisionPoint,
    PredictedPoint,
    VisitPoint,
    is_outlined,
    is_region_call,
)
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.passes.ir.frame_numbers import Coming
from lightint_compile.passes.ir.memo_cost import objection
from lightint_compile.passes.ir.memory_sharing import is_write
from lightint_compile.passes.ir.program import InputKind, Program
from lightint_compile.passes.ir.ranks import group_of
from lightint_compile.passes.ir.remarks import Miss, Numerics, Remark, RemarkKind
from lightint_compile.passes.step_cache.branch_bodies import Side, attributes_of
from lightint_compile.passes.step_cache.branches import computed, operands_of
from lightint_compile.passes.step_cache.extrapolation import EXTRAPOLATE, extrapolation
from lightint_compile.passes.step_cache.steps import StepBody, body_of

if TYPE_CHECKING:
    from lightint_compile.passes.step_cache import StepCache

VISIT, PREDICTED = "visit", "predicted"
"""Names of the two points in a root."""


def guard_from_outside(program: Program, options: StepCache) -> PassResult:
    """Guard an outlined program that is one step; nothing where it is none, a miss where something is in the way."""
    step = marked_outer_step(program)
    if step is None:
        return PassResult(False)
    if isinstance(step, OuterStep):
        body = body_of(program.graph_module, MarkedStep(step.latent, (step.prediction,), ()))
        obstacle = _obstacle(program, step, body, options)
        if obstacle is None:
            return PassResult(True, tuple(_guarded(program, step, body, options)))
        step = obstacle
    return PassResult(False, (step.remark(options.name, "outside"),))


def _obstacle(program: Program, step: OuterStep, body: StepBody, options: StepCache) -> Miss | None:
    """What keeps the step from being branched around."""
    watched = options.drift is not None
    if not is_outlined(program.graph_module, program.graph):
        return Miss(step.latent, "the step is not outlined", "run outline-regions before step-cache")
    if has_plan(program):
        return Miss(step.latent, "another pass decides on chunks in the same program", "")
    astray = contradicted(options, Coming(step.frames, 0), step.cameras)
    if astray is not None:
        return astray
    write = next(filter(is_write, body.nodes), None)
    if write is not None:
        return Miss(write, "the step writes to an input, which a reused step would leave out", "")
    leak = body.leaks(tail_only=watched)
    if leak is not None:
        return Miss(leak, f"the step hands on {leak.name} besides its prediction", "")
    why, hint = _cost(program, step, body)
    if why:
        return Miss(step.latent, why, hint)
    if watched and (body.first is None or not body.tail):
        return Miss(step.latent, "no repeated block is found whose output could be watched", "use drift=none")
    return None


def _cost(program: Program, step: OuterStep, body: StepBody) -> tuple[str, str]:
    """Why telling that all else is the same takes as long as the step itself, and what would change that."""
    root = program.graph_module
    regions = [root.get_submodule(str(node.target)) for node in body.tail if is_region_call(root, node)]
    nodes = [node for region in regions if isinstance(region, fx.GraphModule) for node in region.graph.nodes]
    given = [node for node in program.placeholders() if node not in (step.latent, step.timestep)]
    weights = [node for node in given if program.input_of(node).kind is not InputKind.TENSOR]
    return objection(nodes, weights, [node for node in given if node not in weights])


def _guarded(program: Program, step: OuterStep, body: StepBody, options: StepCache) -> Iterator[Remark]:
    extrapolates = options.strategy != "hold"
    policy = Policy.of(
        options.world(chunk=step.frames), rules=options.rules, steps=(), outside=True, overlap=options.overlap
    )
    point = VisitPoint(policy, options.drift, extrapolates, group_of(program.graph_module))
    reads = intrinsics_of(program, options) if options.rules == "adaptive" else None
    guard_outer_step(program.graph_module, step, body, point, reads)
    how = "the two latest computed predictions are extrapolated" if extrapolates else "the latest prediction is held"
    drift = "" if options.drift is None else f", unless the first block's output drifted by more than {options.drift}"
    yield Remark(
        kind=RemarkKind.APPLIED,
        pass_name=options.name,
        rule="outside",
        message=f"of a loop that calls this once a step, interior steps may be reused: {how}{drift}",
        args={"strategy": "extrapolate" if extrapolates else "hold", "drift": options.drift},
        numerics=Numerics.APPROXIMATE,
    )
    if options.strategy == "residual":
        why = "the blocks' residual is kept inside of a module only: extrapolated instead"
        yield Miss(step.latent, why, "").remark(options.name, "residual")


def guard_outer_step(
    root: fx.GraphModule, step: OuterStep, body: StepBody, point: VisitPoint, intrinsics: fx.Node | None
) -> None:
    """Put a branch around what follows the first block, or around all of the step where no drift is watched."""
    graph, prediction, inside = root.graph, step.prediction, body.nodes if point.drift is None else body.tail
    watched = () if point.drift is None or body.first is None else (body.first,)
    root.add_submodule(VISIT, DecisionPoint(point))
    root.add_submodule(PREDICTED, DecisionPoint(PredictedPoint()))
    root.add_submodule(EXTRAPOLATE, extrapolation(prediction.meta["val"]))
    with graph.inserting_before(inside[-1]):
        further: dict[str, Any] = {} if intrinsics is None else {"intrinsics": intrinsics}
        visit = graph.call_module(VISIT, (step.latent, step.timestep, step.cameras, *watched), further)
        reused, seen, *line = _elements(graph, visit, prediction.meta["val"])
        operands = operands_of(inside, line)
        call = _branch(root, reused, _sides(root, body, inside, line, operands), operands, prediction)
        element = graph.call_function(operator.getitem, (call, 0))
        element.meta = copy.copy(prediction.meta)
        graph.call_module(PREDICTED, (seen, element)).meta["val"] = None
    prediction.replace_all_uses_with(element, propagate_meta=False)
    for node in reversed(inside):
        graph.erase_node(node)


def _elements(graph: fx.Graph, visit: fx.Node, like: torch.Tensor) -> list[fx.Node]:
    """Whether the step is reused, the visit, and the line on which its prediction lies."""
    with like.fake_mode:  # type: ignore[attr-defined]
        weight = torch.empty((), dtype=torch.float64, device="cpu")
    visit.meta["val"] = (False, None, like, like, weight)
    found = []
    for place, value in enumerate(visit.meta["val"]):
        found.append(graph.call_function(operator.getitem, (visit, place)))
        found[-1].meta["val"] = value
    found[0].name = "step_reused"
    return found


def _sides(
    root: fx.GraphModule,
    body: StepBody,
    inside: Sequence[fx.Node],
    line: Sequence[fx.Node],
    operands: Sequence[fx.Node],
) -> tuple[fx.GraphModule, fx.GraphModule]:
    reuse, compute = Side(root, operands), Side(root, operands)
    estimate = reuse.region(EXTRAPOLATE, [reuse.of(node) for node in line], body.predictions[0])
    return reuse.finished([estimate]), compute.finished(computed(body, inside, compute))


def _branch(
    root: fx.GraphModule,
    reused: fx.Node,
    sides: tuple[fx.GraphModule, fx.GraphModule],
    operands: Sequence[fx.Node],
    prediction: fx.Node,
) -> fx.Node:
    attributes = attributes_of(root, ("step_reuse", "step_compute"), sides)
    target: Any = torch.ops.higher_order.cond
    call = root.graph.create_node("call_function", target, (reused, *attributes, tuple(operands)), name="step")
    call.meta["val"] = (prediction.meta["val"],)
    return call
