"""Decisions while a program runs: the walk of one chunk, and the state of one driver.

A chunk is read (``plan_inputs``), decided (``planner``), and its kept values are found (``kv_store``). Each hands on to
the next and writes into the chunk's record; the points behind the plan are asked with it, and write into it too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightint_compile.errors import InputError
from lightint_compile.passes.ir.decision_points import (
    KeepPoint,
    PlanPoint,
    PointSpec,
    PredictedPoint,
    RecallPoint,
    RowsPoint,
    StepPoint,
    VisitPoint,
)
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.runtime import device_to_host as transfer
from lightint_compile.runtime.chunk_record import ChunkRecord
from lightint_compile.runtime.content_check import Watch
from lightint_compile.runtime.decision import Decision
from lightint_compile.runtime.distinct_rows import distinct_rows
from lightint_compile.runtime.drift import relative_change
from lightint_compile.runtime.followed_loop import FollowedLoop, FollowedPlanner
from lightint_compile.runtime.frame_memory import rules_in_world
from lightint_compile.runtime.kv_store import Keeping
from lightint_compile.runtime.per_model import PerModel
from lightint_compile.runtime.plan_inputs import Seen, Watched, read
from lightint_compile.runtime.planner import Planner
from lightint_compile.runtime.siblings import Siblings
from lightint_compile.runtime.visits import Visit

log = logging.getLogger("lightint_compile.runtime")


class Decisions:
    """The decision points of one driver, bound to a planner of their own.

    Args:
        watch: what tells the content of a call's arguments, which comes with the plan's transfer.
        watched: positions of the arguments that kept keys and values depend on.
        outside: what tells the content of all that a step of a loop outside is given, but latent and timestep.

    Attributes:
        bound: what answers each point, by the point's name.
    """

    def __init__(
        self,
        points: Mapping[str, PointSpec],
        watch: Watch | None = None,
        watched: Sequence[int] = (),
        outside: Watch | None = None,
    ) -> None:
        self.points = dict(points)
        self._watch = watch or Watch()
        self._watched = Watched(self._watch, tuple(watched))
        self._outside = outside or Watch()
        plans = [spec for spec in self.points.values() if isinstance(spec, (PlanPoint, VisitPoint))]
        self._policy = plans[0].policy if plans else None
        self._planners = PerModel(partial(_planner_of, self._policy)) if self._policy else None
        self._keeping = Keeping(self._policy) if self._policy else None
        self._follows = True
        self.bound: dict[str, Callable[..., Any]] = {name: self._answer(spec) for name, spec in self.points.items()}

    @property
    def policy(self) -> Policy | None:
        """How chunks are decided; ``None`` where nothing is decided at run time."""
        return self._policy

    @property
    def keeping(self) -> Keeping | None:
        """What is kept of context frames; ``None`` where nothing is decided at run time."""
        return self._keeping

    @property
    def decides(self) -> bool:
        """Whether anything is decided at run time."""
        return self._policy is not None

    def join(self, siblings: Siblings) -> None:
        """Share the planners, and what they remember, with other graphs of the same function."""
        if self._policy is not None:
            self._planners = siblings.planners(self._policy, partial(_planner_of, self._policy))

    @property
    def made(self) -> list[Decision]:
        """The decisions of the rollout that ran last, chunk by chunk."""
        return self._planners.latest.decisions if self._planners else []

    def planner_of(self, parameters: Iterable[Tensor]) -> Planner | None:
        """The planner of the model with these parameters alone; of calls without any where it has none."""
        return self._planners.of(parameters) if self._planners else None

    def unfollow(self) -> None:
        """Follow no loop outside from now on: under an error budget nobody calibrates one."""
        self._follows = False

    @contextmanager
    def call(self, args: Sequence[Any], held: Sequence[Tensor] = ()) -> Iterator[None]:
        """While the context lasts, decisions of this thread belong to the model whose weights are among ``args``.

        ``held`` are tensors of the program itself, which a step of a loop outside is given as well.
        """
        with self._planners.call(args) if self._planners else nullcontext(), self._outside.call((*args, *held)):
            yield

    def reset(self, parameters: Iterable[Tensor] | None = None) -> None:
        """Forget every rollout, or those of the model with these parameters; kept values are forgotten with them."""
        planners = self._planners
        for planner in () if planners is None else planners.all() if parameters is None else [planners.of(parameters)]:
            planner.reset()
        if self._keeping:
            self._keeping.reset()

    def _answer(self, spec: PointSpec) -> Callable[..., Any]:
        if isinstance(spec, StepPoint):
            return partial(_reused_each if spec.each else _reused, spec)
        if isinstance(spec, KeepPoint):
            return partial(_keep, spec)
        if isinstance(spec, RecallPoint):
            return partial(_recall, spec)
        if isinstance(spec, RowsPoint):
            return partial(distinct_rows, spec, self._watch)
        if isinstance(spec, VisitPoint):
            return partial(self._visit, spec)
        if isinstance(spec, PredictedPoint):
            return self._predicted
        return partial(self._plan, spec)

    def _plan(
        self,
        spec: PlanPoint,
        extrinsics: Tensor,
        history: Tensor | None = None,
        frames: Sequence[Tensor] = (),
        inputs: Sequence[Tensor] = (),
        *,
        first: int | Tensor | None = None,
        intrinsics: Tensor | None = None,
    ) -> tuple[Tensor | None, ChunkRecord, Tensor | None, Tensor | None]:
        """One chunk, from what is read of it to what it recalls; see :class:`PlanPoint`."""
        assert self._planners is not None and self._keeping is not None
        planner = self._planners.current()
        seen = read(spec, self._keeping, self._watched, extrinsics, history, frames, first, intrinsics)
        record = _decided(planner, seen)
        if not spec.policy.adapt_context:
            return None, record, None, None
        assert history is not None
        if spec.policy.asked_every is not None:
            return _numbers(_places(spec.policy, record.decision), history.device), record, None, None
        context = record.decision.context_frames
        index = _numbers(context, history.device)
        if not frames:
            return index, record, None, None
        use = self._keeping.begin(record.decision.chunk, context, seen.prints, self._watched.content())
        record.keeps(use)
        return index, record, index[len(use.share.kept) :], _numbers(use.slots, history.device)

    def _visit(
        self,
        spec: VisitPoint,
        latent: Tensor,
        timestep: Tensor,
        cameras: Tensor,
        first: Tensor | None = None,
        *,
        intrinsics: Tensor | None = None,
    ) -> tuple[bool, Visit | None, Tensor | None, Tensor | None, Tensor | None]:
        """One step of a loop outside; see :class:`VisitPoint`."""
        if not self._follows:
            return False, None, None, None, None
        visit, line = self._loop().visit(spec, latent, timestep, cameras, first, intrinsics, self._outside)
        if line is None:
            return False, visit, None, None, None
        return True, visit, line.latest, line.previous, line.weight

    def _predicted(self, visit: Visit | None, prediction: Tensor) -> None:
        if visit is not None:
            self._loop().predicted(visit, prediction)

    def _loop(self) -> FollowedLoop:
        assert self._planners is not None
        planner = self._planners.current()
        assert isinstance(planner, FollowedPlanner)
        return planner.loop


def _planner_of(policy: Policy) -> Planner:
    if policy.outside:
        return FollowedPlanner(policy)
    return Planner(rules_in_world(policy), given=policy.given, each=policy.each, most=policy.memory)


def _decided(planner: Planner, seen: Seen) -> ChunkRecord:
    """What is decided on what was read; cameras that cannot be understood cost the saving, not the result."""
    try:
        seen.check(planner.rules.chunk)
        return planner.record(seen.cameras, seen.dynamics, seen.dtype, seen.views)
    except InputError as error:
        log.warning("nothing is reused in this chunk, and all of its memory is gathered: %s", error)
        return planner.undecided(seen.frames)


def _places(policy: Policy, decision: Decision) -> Sequence[int]:
    """Which of the frames that are asked for are gathered: all of them where nothing was decided."""
    return range(policy.asked_frames) if decision.asked_places is None else decision.asked_places


def _numbers(values: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)


def _reused(spec: StepPoint, record: ChunkRecord, now: Tensor | None = None, before: Tensor | None = None) -> bool:
    """Answers a step point: the decision's word, then the drift of an activation, which is one small transfer."""
    if spec.step not in record.decision.reused_steps:
        return False
    if spec.drift is None or now is None or before is None:
        return True
    return record.checked(
        spec.step, float(transfer.to_host(relative_change(now, before, spec.group).amax())), spec.drift
    )


def _reused_each(
    spec: StepPoint, record: ChunkRecord, now: Tensor | None = None, before: Tensor | None = None
) -> tuple[bool, ...]:
    """For each element of the batch; nothing is measured where none of them may reuse the step."""
    count = max(len(record.own), 1) if now is None else now.shape[0]
    allowed = tuple(spec.step in own.reused_steps for own in record.each(count))
    if not any(allowed) or spec.drift is None or now is None or before is None:
        return allowed
    drifts = transfer.to_host(relative_change(now, before, spec.group))
    return record.checked_each(spec.step, drifts.tolist(), spec.drift)


def _recall(spec: RecallPoint, record: ChunkRecord, *sizes: int) -> Tensor:
    assert record.use is not None
    return record.use.recall(spec, *sizes)


def _keep(spec: KeepPoint, record: ChunkRecord, values: Tensor) -> None:
    assert record.use is not None
    record.use.keep(spec, values)
