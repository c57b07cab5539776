"""Answers to a program's decision points: the state of one driver, and how it is asked."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightint_compile.errors import InputError
from lightint_compile.passes.ir.decision_points import KeepPoint, PlanPoint, PointSpec, RecallPoint, StepPoint
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.passes.ir.world_spec import WorldSpec
from lightint_compile.runtime import device_to_host as transfer
from lightint_compile.runtime.cameras import of_elements, view_of
from lightint_compile.runtime.content_check import Content, Watch
from lightint_compile.runtime.decision import Decision
from lightint_compile.runtime.drift import latent_dynamics, relative_change
from lightint_compile.runtime.kept_frames import Fingerprint
from lightint_compile.runtime.kv_store import Keeping, Use, fingerprints, frame_sums
from lightint_compile.runtime.per_model import PerModel
from lightint_compile.runtime.planner import Planner
from lightint_compile.runtime.rules import rules_of
from lightint_compile.runtime.siblings import Siblings
from lightint_compile.runtime.view_overlap import AngularView

log = logging.getLogger("lightint_compile.runtime")


@dataclass
class Record:
    """One chunk's decision while the chunk runs. It belongs to the call, so two threads do not meet in it.

    Attributes:
        own: the decision of every element of the batch, or one that all of them share.
        use: the values of context frames that the chunk recalls and keeps, where any are kept.
    """

    planner: Planner
    decision: Decision
    own: tuple[Decision, ...] = ()
    use: Use | None = None

    def checked(self, step: int, drift: float, most: float) -> bool:
        """Write down what the drift check of ``step`` measured; whether the step may be reused. NaN refuses."""
        may = drift <= most
        before, self.decision = self.decision, self.decision.after_check(step, drift, refused=not may)
        self.planner.amend(before, self.decision)
        verdict = "reused" if may else "computed"
        log.info("chunk %d: step %d is %s, it drifted by %.3f of %.3f", self.decision.chunk, step, verdict, drift, most)
        return may

    def each(self, count: int) -> tuple[Decision, ...]:
        """The decision of each of ``count`` elements; all share one where cameras do not tell them apart."""
        return self.own if len(self.own) == count else (self.own[0] if len(self.own) == 1 else self.decision,) * count

    def checked_each(self, step: int, drifts: Sequence[float], most: float) -> tuple[bool, ...]:
        """:meth:`checked` of a batch, for those of its elements that may reuse ``step`` by their own decision."""
        each, before = self.each(len(drifts)), self.decision
        asked = [step in own.reused_steps for own in each]
        may = tuple(ask and drift <= most for ask, drift in zip(asked, drifts, strict=True))
        self.own = tuple(
            own.after_check(step, drift, refused=not reused) if ask else own
            for own, drift, ask, reused in zip(each, drifts, asked, may, strict=True)
        )
        measured = [drift for drift, ask in zip(drifts, asked, strict=True) if ask]
        largest = max(measured, key=lambda drift: (math.isnan(drift), drift))
        now = before.after_check(step, largest, refused=may != tuple(asked))
        self.decision = now.with_elements(self.own)
        self.planner.amend(before, self.decision)
        text = ", ".join(f"{drift:.3f}" for drift in measured)
        verdict = f"{sum(may)} of {len(may)} elements reuse step {step}"
        log.info("chunk %d: %s, those that may drifted by %s of %.3f", before.chunk, verdict, text, most)
        return may


def _planner_of(policy: Policy) -> Planner:
    return Planner(rules_of(policy), given=policy.given, each=policy.each)


class Decisions:
    """The decision points of one driver, bound to a planner of their own.

    Args:
        watch: what tells the content of a call's arguments, which comes with the plan's transfer.
        watched: positions of the arguments that kept keys and values depend on.

    Attributes:
        bound: what answers each point, by the point's name.
    """

    def __init__(
        self, points: Mapping[str, PointSpec], watch: Watch | None = None, watched: Sequence[int] = ()
    ) -> None:
        self.points = dict(points)
        self._watched = _Watched(watch or Watch(), tuple(watched))
        plans = [spec for spec in self.points.values() if isinstance(spec, PlanPoint)]
        self._policy = plans[0].policy if plans else None
        self._planners = PerModel(partial(_planner_of, self._policy)) if self._policy else None
        self._keeping = Keeping(self._policy) if self._policy else None
        self.bound: dict[str, Callable[..., Any]] = {name: self._answer(spec) for name, spec in self.points.items()}

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

    def call(self, args: Sequence[Any]) -> AbstractContextManager[None]:
        """While the context lasts, decisions of this thread belong to the model whose weights are among ``args``."""
        return self._planners.call(args) if self._planners else nullcontext()

    def reset(self, parameters: Iterable[Tensor] | None = None) -> None:
        """Forget every rollout, or those of the model with these parameters; kept values are forgotten with them."""
        planners = self._planners
        for planner in () if planners is None else planners.all() if parameters is None else [planners.of(parameters)]:
            planner.reset()
        if self._keeping:
            self._keeping.reset()

    def _answer(self, spec: PointSpec) -> Callable[..., Any]:
        if isinstance(spec, StepPoint):
            return _StepGuard(spec)
        if isinstance(spec, KeepPoint):
            return partial(_keep, spec)
        if isinstance(spec, RecallPoint):
            return partial(_recall, spec)
        return partial(self._plan, spec)

    def _plan(self, spec: PlanPoint, *operands: Any, **further: Any) -> Any:
        assert self._planners is not None and self._keeping is not None
        return _Plan(spec, self._planners.current(), self._keeping, self._watched)(*operands, **further)


def _keep(spec: KeepPoint, record: Record, values: Tensor) -> None:
    assert record.use is not None
    record.use.keep(spec, values)


def _recall(spec: RecallPoint, record: Record, *sizes: int) -> Tensor:
    assert record.use is not None
    return record.use.recall(spec, *sizes)


@dataclass(frozen=True)
class _Watched:
    """The arguments that kept keys and values depend on."""

    watch: Watch
    positions: tuple[int, ...]

    def waiting(self) -> list[Tensor]:
        check = self.watch.current()
        return check.waiting() if check else []

    def arrived(self, numbers: Sequence[Tensor]) -> None:
        check = self.watch.current()
        if check:
            check.arrived(numbers)

    def content(self) -> Content | None:
        check = self.watch.current()
        found = check.content(self.positions) if check else None
        if check and found is None:
            self.watch.tell(check.why_not(self.positions))
        return found


@dataclass(frozen=True)
class _Seen:
    """What the plan reads from the device, all at once.

    Attributes:
        cameras: of the history and of the coming chunk.
        first: how many of them are the history's.
        views: the fields of view that intrinsics tell, one for all elements of a batch or one for each.
    """

    cameras: Tensor
    first: int
    dynamics: float | None = None
    prints: Sequence[Fingerprint] = ()
    views: Sequence[AngularView] = ()


class _Plan:
    """Answers the plan point of one chunk: one transfer from the device."""

    def __init__(self, spec: PlanPoint, planner: Planner, keeping: Keeping, watched: _Watched) -> None:
        self._policy, self._planner, self._keeping, self._watched = spec.policy, planner, keeping, watched
        self._frame_axes = spec.frame_axes
        self._looks_at_latents = spec.policy.adapt_context and spec.policy.rules == "adaptive"

    def __call__(
        self,
        extrinsics: Tensor,
        history: Tensor | None = None,
        frames: Sequence[Tensor] = (),
        inputs: Sequence[Tensor] = (),
        *,
        first: int | Tensor | None = None,
        intrinsics: Tensor | None = None,
    ) -> tuple[Tensor | None, Record, Tensor | None, Tensor | None]:
        seen = self._read(extrinsics, history, frames, first, intrinsics)
        decision, each = self._decide(seen, extrinsics.dtype, None if history is None else int(history.shape[2]))
        if not self._policy.adapt_context:
            return None, Record(self._planner, decision, each), None, None
        assert history is not None
        context = decision.context_frames
        index = _numbers(context, history.device)
        if not frames:
            return index, Record(self._planner, decision, each), None, None
        use = self._keeping.begin(decision.chunk, context, seen.prints, self._watched.content())
        kept = len(use.share.kept)
        amended = dataclasses.replace(decision, kept_frames=kept).with_elements(decision.elements)
        self._planner.amend(decision, amended)
        return index, Record(self._planner, amended, each, use), index[kept:], _numbers(use.slots, history.device)

    def _read(
        self,
        extrinsics: Tensor,
        history: Tensor | None,
        frames: Sequence[Tensor],
        first: int | Tensor | None,
        intrinsics: Tensor | None,
    ) -> _Seen:
        """One transfer: everything that is decided on.

        That is the change of the latents, what says whether frames are the same, drifts, intrinsics, which frames are
        coming, and the cameras.
        """
        looks = history is not None and self._looks_at_latents
        sums, drifts = frame_sums(frames, self._frame_axes), self._keeping.drifts()
        groups: dict[str, Sequence[Tensor]] = {
            "cameras": [extrinsics],
            "dynamics": [latent_dynamics(history.detach())] if looks and history is not None else [],
            "sums": sums.waiting(),
            "contents": self._watched.waiting(),
            "first": [first] if isinstance(first, Tensor) else [],
            "intrinsics": [of_elements(intrinsics.detach())] if intrinsics is not None else [],
            "drifts": [drift for _, drift in drifts],
        }
        numbers = iter(transfer.together([part for group in groups.values() for part in group]))
        read = {name: [next(numbers) for _ in group] for name, group in groups.items()}
        sums.arrived(read["sums"])
        self._watched.arrived(read["contents"])
        for (store, _), drift in zip(drifts, read["drifts"], strict=True):
            self._keeping.heard(store, float(drift))
        (cameras,) = read["cameras"]
        begins = int(cameras.shape[-3]) - self._policy.chunk if first is None else self._begin(first, *read["first"])
        return _Seen(
            cameras[..., : max(begins + self._policy.chunk, 0), :, :],
            begins,
            next(map(float, read["dynamics"]), None),
            fingerprints(sums, frames, self._frame_axes),
            self._views(*read["intrinsics"]),
        )

    def _begin(self, first: int | Tensor, numbers: Tensor | None = None) -> int:
        """The first coming frame; -1 for frames that do not follow one another."""
        if numbers is None:
            return int(first)
        rows = [int(number) for number in numbers.flatten()]
        return rows[0] if rows == list(range(rows[0], rows[0] + self._policy.chunk)) else -1

    def _views(self, intrinsics: Tensor | None = None) -> Sequence[AngularView]:
        if intrinsics is None:
            return ()
        try:
            return [view_of(each, depth=self._policy.view_depth) for each in intrinsics]
        except InputError as error:
            log.warning("intrinsics are not looked at: %s", error)
            return ()

    def _decide(self, seen: _Seen, dtype: torch.dtype, frames: int | None) -> tuple[Decision, tuple[Decision, ...]]:
        """The decision on a history of ``frames`` latent frames, where it is known."""
        memory = self._policy.memory
        known = max(seen.first, 0) if frames is None else frames
        try:
            self._check(seen, frames)
            decision, each = self._planner.decide_each(seen.cameras, seen.dynamics, dtype, seen.views)
        except InputError as error:
            log.warning("nothing is reused in this chunk, and all of its memory is gathered: %s", error)
            self._planner.leave()
            cautious = _cautious(self._policy, known // self._policy.chunk, known)
            return cautious, (cautious,)
        if len(decision.context_frames) <= memory:
            return decision, each
        log.info("chunk %d: a batch wants more frames than fit; all get the newest", decision.chunk)
        amended = dataclasses.replace(decision, context_frames=_cautious(self._policy, 0, known).context_frames)
        if decision.elements:
            amended = amended.with_elements(each)
        self._planner.amend(decision, amended)
        return amended, each

    def _check(self, seen: _Seen, frames: int | None) -> None:
        """Raise :class:`InputError` unless the cameras are those of the history and of one chunk behind it."""
        chunk, poses = self._policy.chunk, int(seen.cameras.shape[-3])
        if seen.first < 0 or poses < seen.first + chunk:
            why = f"the coming chunk begins at frame {seen.first}, and the path ends at {poses}"
            fix = f"give the cameras of {chunk} consecutive frames behind the history"
            raise InputError("The cameras do not reach the coming chunk.", where="extrinsics", why=why, fix=fix)
        if frames is not None and seen.first != frames:
            why = f"there are {poses} cameras and a history of {frames} latent frames"
            fix = f"give the cameras of the history and of the next {chunk} latent frames, {frames + chunk} in all"
            raise InputError("The cameras do not belong to the history.", where="extrinsics", why=why, fix=fix)


def _numbers(values: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)


def _cautious(world: WorldSpec, chunk: int, frames: int) -> Decision:
    """What is done when the cameras cannot be understood: the first clip and as many of the newest frames as fit."""
    kept = {*range(min(world.clip, frames)), *range(max(frames - world.memory + world.clip, 0), frames)}
    return Decision(chunk=chunk, context_frames=tuple(sorted(kept)))


class _StepGuard:
    """Answers a step point: the decision's word, then the drift of an activation, which is one small transfer."""

    def __init__(self, spec: StepPoint) -> None:
        self._spec = spec

    def __call__(
        self, record: Record, now: Tensor | None = None, before: Tensor | None = None
    ) -> bool | tuple[bool, ...]:
        if self._spec.each:
            return self._each(record, now, before)
        if self._spec.step not in record.decision.reused_steps:
            return False
        if self._spec.drift is None or now is None or before is None:
            return True
        return record.checked(
            self._spec.step, float(transfer.to_host(relative_change(now, before).amax())), self._spec.drift
        )

    def _each(self, record: Record, now: Tensor | None, before: Tensor | None) -> tuple[bool, ...]:
        """For each element of the batch; nothing is measured where none of them may reuse the step."""
        count = max(len(record.own), 1) if now is None else now.shape[0]
        allowed = tuple(self._spec.step in own.reused_steps for own in record.each(count))
        if not any(allowed) or self._spec.drift is None or now is None or before is None:
            return allowed
        drifts = transfer.to_host(relative_change(now, before))
        return record.checked_each(self._spec.step, drifts.tolist(), self._spec.drift)
