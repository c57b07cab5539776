"""step-cache: interior denoising steps become branches that reuse what earlier steps predicted, or compute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.fx as fx

from lightint_compile.errors import OptionError, did_you_mean
from lightint_compile.passes.analysis.batch_elements.rows import Refused
from lightint_compile.passes.analysis.cameras import camera_input
from lightint_compile.passes.analysis.coming_frames import marked_coming, marked_past
from lightint_compile.passes.analysis.frame_memory import marked_world
from lightint_compile.passes.analysis.loop_marks import MarkedStep, marked_steps
from lightint_compile.passes.analysis.world import chunk_frames, contradicted, intrinsics_of
from lightint_compile.passes.base import Pass, PassResult
from lightint_compile.passes.ir.chunk_plan import ensure_plan, has_plan, plan_policy
from lightint_compile.passes.ir.decision_points import StepPoint, VisitPoint, is_outlined, point_of
from lightint_compile.passes.ir.decision_policy import STRATEGIES, Policy, check_overlap, check_rules
from lightint_compile.passes.ir.fake_values import Size, size_of
from lightint_compile.passes.ir.frame_numbers import Coming
from lightint_compile.passes.ir.memory_sharing import is_write
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.remarks import Miss, Numerics, Remark, RemarkKind
from lightint_compile.passes.ir.saved import Saved
from lightint_compile.passes.ir.world_spec import StatedWorld, WorldSpec
from lightint_compile.passes.step_cache.branches import GuardedSteps
from lightint_compile.passes.step_cache.outside import guard_from_outside
from lightint_compile.passes.step_cache.per_element import Apart
from lightint_compile.passes.step_cache.reuse import REUSES
from lightint_compile.passes.step_cache.steps import StepBody, bodies_of


@dataclass(frozen=True, kw_only=True)
class StepCache(StatedWorld, Pass):
    """Puts a guarded branch around every interior denoising step: reuse or extrapolate earlier predictions, or compute.

    A program that is one step of a loop outside of it gets one branch; which step a call is, is seen at run time.

    A step is reused when the camera looks at what it has seen before, and the first block's output has not drifted from
    that of the latest computed step. The first and the last step always compute. See ``docs/passes/step-cache.md``.

    What is known of the world (:class:`~lightint_compile.passes.ir.world_spec.StatedWorld`) may be stated besides.

    Attributes:
        rules: ``adaptive``, or ``published`` for the constants of the Light Interaction release.
        strategy: ``hold`` repeats the latest computed prediction, ``extrapolate`` follows the line in sigma through the
            two latest computed ones (and holds while there is only one), ``residual`` runs the step's first block and
            adds what the other blocks added in the latest computed step.
        drift: largest relative change of the first block's output, in any tile of tokens, at which a step is reused;
            ``none`` reuses on the camera's word alone.
        overlap: overlap from which a view counts as seen before; ``None`` leaves it to the rules.
    """

    name: ClassVar[str] = "step-cache"
    numerics: ClassVar[Numerics] = Numerics.APPROXIMATE
    rules: str = "adaptive"
    strategy: str = "extrapolate"
    drift: float | None = 0.25
    overlap: float | None = None

    def __post_init__(self) -> None:
        check_rules(self.rules, f"{self.name}{{rules}}")
        check_overlap(self.overlap, f"{self.name}{{overlap}}")
        self.world()
        if self.strategy not in STRATEGIES:
            fix = did_you_mean(self.strategy, STRATEGIES)
            raise OptionError(f"there is no strategy {self.strategy!r}", where=f"{self.name}{{strategy}}", fix=fix)
        self.check_not_negative("drift")

    def run(self, program: Program) -> PassResult:
        """Guard the interior steps of an outlined program."""
        root = program.graph_module
        if any(isinstance(point_of(root, node), (StepPoint, VisitPoint)) for node in root.graph.nodes):
            return PassResult(False)
        found = _find(program, self)
        if isinstance(found, Remark):
            return PassResult(False, (found,))
        if found is None:
            return guard_from_outside(program, self)
        if _batch_of(found.steps) == 1:
            return self._guarded(program, found, None)
        saved = Saved(program)
        try:
            return self._guarded(program, found, Apart(program, found.steps[0].carried_in))
        except Refused as refused:
            saved.put_back(program)
            shared = _find(program, self)
            assert isinstance(shared, _Found)
            result = self._guarded(program, shared, None)
            why = (_shared(refused),) if result.modified else ()
            return PassResult(result.modified, (*result.remarks, *why))

    def _guarded(self, program: Program, found: _Found, apart: Apart | None) -> PassResult:
        """Guard the steps that were found, each element of a batch for itself where ``apart`` is given."""
        chunk = {} if found.coming is None else {"chunk": found.coming.count}
        policy = Policy.of(
            self.world(**{**_known_world(program, found.cameras), "denoising_steps": len(found.steps), **chunk}),
            rules=self.rules,
            steps=tuple(sorted(found.guarded)),
            each=apart is not None,
            overlap=self.overlap,
        )
        record = ensure_plan(program, policy, found.cameras, found.coming, intrinsics_of(program, self))
        if record is None:
            why = "adaptive-context decides by other rules in the same program"
            return PassResult(
                False, (_missed(found.steps[0].carried_in, "rules", why, "give both passes equal rules"),)
            )
        strategy = "hold" if self.strategy == "extrapolate" and not _is_euler(found.steps) else self.strategy
        reuse = REUSES[strategy](found.steps, found.bodies, watched=self.drift is not None)
        GuardedSteps(program.graph_module, found.bodies, record, reuse, self.drift, apart).rewrite()
        return PassResult(True, tuple(_remarks(found, self, strategy, each=apart is not None)))


def _known_world(program: Program, cameras: fx.Node) -> dict[str, Any]:
    """What is known of the world: by the plan that there is, else what was marked before the steps became calls."""
    planned = plan_policy(program)
    return marked_world(cameras) if planned is None else WorldSpec.facts(planned)


@dataclass(frozen=True)
class _Found:
    """What is guarded: the interior steps whose bodies can be branched around."""

    steps: tuple[MarkedStep, ...]
    bodies: tuple[StepBody, ...]
    guarded: tuple[int, ...]
    cameras: fx.Node
    coming: Coming | None


def _find(program: Program, options: StepCache) -> _Found | Remark | None:
    root = program.graph_module
    steps = marked_steps(root.graph)
    if not steps:
        return None
    first = steps[0].carried_in
    if not is_outlined(root, root.graph):
        return _missed(first, "loop", "the steps are not outlined", "run outline-regions before step-cache")
    if len(steps) < 3:
        return _missed(first, "loop", f"of {len(steps)} steps none is between the first and the last", "")
    cameras = camera_input(program)
    if cameras is None:
        hint = 'name it: options={"roles": {"<input>": "camera"}}'
        return _missed(first, "camera", "no input holds the cameras, which say when a view was seen before", hint)
    if _are_one_chunks(cameras, chunk_frames(options, first)):
        why = "it is given keys and values of earlier frames, and no cameras that say what these frames saw"
        hint = "give it the cameras of the whole path, of which the steps read the last"
        return _missed(cameras, "camera", why, hint) if marked_past(cameras) else None
    coming = None if has_plan(program) else marked_coming(root.graph, cameras)
    if isinstance(coming, Miss):
        return coming.remark(StepCache.name, "camera")
    if coming is None and not has_plan(program):
        why = "the steps read none of the cameras, so nothing says which of them are the coming chunk's"
        return _missed(first, "camera", why, "let the steps read the cameras of their frames")
    if coming is not None and coming.first == 0:
        return None
    astray = contradicted(options, coming, cameras)
    if astray is not None:
        return astray.remark(StepCache.name, "camera")
    bodies = bodies_of(root, steps)
    obstacle = _obstacle(first, bodies, options)
    return obstacle or _Found(steps, bodies, tuple(range(1, len(steps) - 1)), cameras, coming)


def _obstacle(first: fx.Node, bodies: tuple[StepBody, ...], options: StepCache) -> Remark | None:
    """What keeps the steps of ``bodies`` from being branched around as ``options`` want it."""
    residual = options.strategy == "residual"
    splits = residual or options.drift is not None
    for number, body in enumerate(bodies[1:-1], 1):
        write = next(filter(is_write, body.nodes), None)
        if write is not None:
            return _missed(write, "step", f"step {number} writes to an input, which a reused step would leave out", "")
        leak = body.leaks(tail_only=splits)
        if leak is not None:
            return _missed(leak, "step", f"step {number} hands {leak.name} to later steps besides its prediction", "")
    hint = "use strategy=extrapolate,drift=none" if residual else "use drift=none"
    if splits and any(body.first is None for body in bodies):
        return _missed(first, "drift", "no repeated block is found whose output could be watched", hint)
    if splits and not all(body.tail for body in bodies[1:-1]):
        return _missed(first, "drift", "nothing is left to save behind the block that is watched", hint)
    if residual and any(body.last is None for body in bodies[:-1]):
        why = "no last block is found from whose output alone a step's predictions are made"
        return _missed(first, "residual", why, "use strategy=extrapolate")
    return None


def _are_one_chunks(cameras: fx.Node, chunk: int) -> bool:
    """Whether a program only ever sees the cameras of one chunk: those of what was seen before are not among them."""
    tensor = tensor_of(cameras)
    return tensor is not None and isinstance(tensor.shape[-3], int) and tensor.shape[-3] <= chunk


def _is_euler(steps: tuple[MarkedStep, ...]) -> bool:
    return all(len(step.scalars) == 1 and len(step.predictions) == 1 for step in steps)


def _batch_of(steps: tuple[MarkedStep, ...]) -> Size:
    tensor = tensor_of(steps[0].carried_in)
    assert tensor is not None
    return size_of(tensor.shape[0])


def _remarks(found: _Found, options: StepCache, strategy: str, each: bool) -> Iterator[Remark]:
    how = {
        "hold": "the latest computed prediction is held",
        "extrapolate": "the two latest computed predictions are extrapolated in sigma",
        "residual": "the first block runs, and the latest computed residual of the others is added",
    }
    check = (
        f", unless the first block's output drifted by more than {options.drift}" if options.drift is not None else ""
    )
    own = ", by each element of the batch for itself" if each else ""
    yield Remark(
        kind=RemarkKind.APPLIED,
        pass_name=StepCache.name,
        rule=strategy,
        message=f"{len(found.guarded)} of {len(found.steps)} steps may be reused{own}: {how[strategy]}{check}",
        args={
            "steps": list(found.guarded),
            "of": len(found.steps),
            "strategy": strategy,
            "drift": options.drift,
            **({"each": True} if each else {}),
        },
        numerics=Numerics.APPROXIMATE,
    )
    if strategy != options.strategy:
        yield _missed(
            found.steps[0].carried_in,
            "extrapolate",
            "the scheduler is no Euler step with one prediction: held instead of extrapolated",
            "",
        )


def _shared(refused: Refused) -> Remark:
    """Why all elements of a batch share a decision."""
    why = f"all elements of a batch share a decision: {refused.reason}"
    return _missed(refused.node, "batch", why, "keep the elements of the batch apart in every operation of a step")


def _missed(node: fx.Node, rule: str, message: str, hint: str) -> Remark:
    return Miss(node, message, hint).remark(StepCache.name, rule)
