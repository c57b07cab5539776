"""A denoising loop seen from outside: calls of one step tell which chunk they belong to, and which step they are.

Calls with the same cameras, whose timestep falls, are the steps of a chunk. The chunk before says how many steps there
are and at which timesteps. A step may be reused where the path of the cameras allows it, where it is the step that is
due, and where all else that it is given has the content that the computed step before it had. Any other call computes.

Nothing is read from the device but at the first step of a chunk, and at steps that may be reused. Calls in between are
told apart by their number, and looked at with the next that is read; a call that was taken for another then ends
the reuse in its chunk.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from lightint_compile.errors import InputError
from lightint_compile.passes.ir.decision_points import VisitPoint
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.runtime.camera_path import continued
from lightint_compile.runtime.chunk_record import ChunkRecord
from lightint_compile.runtime.content_check import Watch
from lightint_compile.runtime.content_sums import PLAIN, obstacle_now
from lightint_compile.runtime.drift import relative_change
from lightint_compile.runtime.plan_inputs import views_of
from lightint_compile.runtime.planner import Planner
from lightint_compile.runtime.rules import rules_of
from lightint_compile.runtime.underway import rollout_is_underway
from lightint_compile.runtime.visits import Told, Visit, read

log = logging.getLogger("lightint_compile.runtime")

UNREAD = 8
"""Calls that are looked at together at most."""

POINTS = 2
"""Computed steps that a line is drawn through."""

FEWEST = 3
"""Steps of a loop in which one is between the first and the last."""


@dataclass(frozen=True)
class Line:
    """Where the prediction of a reused step lies: ``latest + (latest - previous) * weight``."""

    latest: Tensor
    previous: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Schedule:
    """The steps of a chunk.

    Attributes:
        times: the timestep of each.
        lanes: calls in each, such as the two of guidance.
    """

    times: tuple[float, ...] = ()
    lanes: int = 1

    @classmethod
    def of(cls, times: list[float]) -> Self:
        """What the calls of a chunk tell; empty where they are no loop of three steps or more, all called as often."""
        groups = [(at, len(list(each))) for at, each in itertools.groupby(times)]
        counts = {count for _, count in groups}
        return cls(tuple(at for at, _ in groups), *counts) if len(counts) == 1 and len(groups) >= FEWEST else cls()

    @property
    def interior(self) -> tuple[int, ...]:
        """The steps between the first and the last."""
        return tuple(range(1, len(self.times) - 1))

    def __bool__(self) -> bool:
        return bool(self.times)


@dataclass(eq=False)
class _Chunk:
    """What is known of the chunk under way.

    Attributes:
        times: the timestep of every call that was read.
        fits: whether they are those of the chunk before, so far.
        kept: computed steps that later ones may follow, the latest last.
    """

    record: ChunkRecord
    told: Told
    times: list[float]
    fits: bool
    kept: list[Visit] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        """Plain data and tensors, without what later steps may follow; :meth:`from_state` takes it back."""
        told = {field.name: getattr(self.told, field.name) for field in dataclasses.fields(self.told)}
        return {"record": self.record.state(), "told": told, "times": list(self.times), "fits": self.fits}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], last: ChunkRecord | None) -> Self:
        """The inverse of :meth:`state`; ``last`` is the planner's last record, which may be this chunk's."""
        listed = last is not None and last.state() == state["record"]
        record = last if last is not None and listed else ChunkRecord.from_state(state["record"])
        return cls(record, Told(**state["told"]), [*state["times"]], state["fits"])

    def holds(self, told: Told) -> bool:
        """Whether a call may be one of this chunk's steps."""
        same = told.cameras.shape == self.told.cameras.shape and torch.equal(told.cameras, self.told.cameras)
        return same and told.at <= self.times[-1]


class FollowedLoop:
    """Follows the calls of one model.

    Args:
        planner: decides the chunks.
    """

    def __init__(self, planner: Planner, policy: Policy) -> None:
        self._planner, self._policy = planner, policy
        self._lock = threading.RLock()
        self.forget()

    def forget(self) -> None:
        """The next call begins a rollout. Another thread waits until the call that is being looked at is."""
        with self._lock:
            self._schedule = Schedule()
            self._chunk: _Chunk | None = None
            self._path: Tensor | None = None
            self._unread: list[Visit] = []
            self._owner: tuple[Any, ...] = ()
            self._hint: tuple[Any, ...] = ()

    def state(self) -> dict[str, Any]:
        """What is remembered between chunks, as plain data and tensors; :meth:`restore` takes it back.

        Calls that were not looked at are. What a step of the chunk under way could follow is left out.
        """
        with self._lock:
            if self._unread:
                read(self._unread, [])
                self._follow_unread()
            schedule = {"times": self._schedule.times, "lanes": self._schedule.lanes}
            chunk = None if self._chunk is None else self._chunk.state()
            return {"schedule": schedule, "path": self._path, "chunk": chunk}

    def restore(self, state: Mapping[str, Any], last: ChunkRecord | None) -> None:
        """Remember what :meth:`state` said, and nothing else; whoever calls next goes on.

        Args:
            last: the planner's last record.
        """
        with self._lock:
            self.forget()
            self._schedule, self._path = Schedule(**state["schedule"]), state["path"]
            self._chunk = None if state["chunk"] is None else _Chunk.from_state(state["chunk"], last)

    def visit(
        self,
        spec: VisitPoint,
        latent: Tensor,
        timestep: Tensor,
        cameras: Tensor,
        first: Tensor | None,
        intrinsics: Tensor | None,
        watch: Watch,
    ) -> tuple[Visit | None, Line | None]:
        """One call: what is to be told of its prediction, or the line that its prediction lies on."""
        devices = {each.device.type for each in (latent, timestep, cameras)}
        if rollout_is_underway() or obstacle_now(devices) or not {type(timestep), type(cameras)} <= PLAIN:
            return None, None
        with self._lock:
            self._enter(latent)
            views = cameras[..., -self._policy.chunk :, :, :]
            visit = Visit(latent, timestep, views, first, intrinsics, watch)
            before, self._hint = self._hint, _hint_of(cameras)
            step = self._due()
            self._unread.append(visit)
            if not self._is_read(step, changed=before != self._hint):
                self._keep(visit, step)
                self._let_go(step)
                return visit, None
            line = self._read(spec, visit, step)
        return visit, line

    def predicted(self, visit: Visit, prediction: Tensor) -> None:
        """What a call computed, of which a copy is kept where a later step may follow it."""
        if visit.keeps:
            visit.prediction = prediction.detach().clone()

    def _enter(self, like: Tensor) -> None:
        """Another thread, stream or mode than that of the call before begins a rollout of its own."""
        stream = torch.cuda.current_stream(like.device) if like.is_cuda else None
        owner = threading.get_ident(), stream, torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        if self._owner and owner != self._owner:
            self.forget()
        self._owner = owner

    def _due(self) -> int:
        """The step that the coming call is by its number in the chunk; the number of steps for the next chunk's."""
        calls = len(self._unread) + (len(self._chunk.times) if self._chunk is not None else 0)
        return calls // self._schedule.lanes

    def _is_read(self, step: int, *, changed: bool) -> bool:
        """Whether a call is looked at now."""
        count = len(self._schedule.times)
        if self._chunk is None or len(self._unread) >= UNREAD:
            return True
        if not count:
            return changed
        return step >= count or self._may_be_reused(step) or (changed and step != count - 1)

    def _may_be_reused(self, step: int) -> bool:
        chunk = self._chunk
        return chunk is not None and chunk.fits and step in chunk.record.decision.reused_steps

    def _keep(self, visit: Visit, step: int) -> None:
        """Keep what a computed step gives, where a later one may follow it."""
        chunk = self._chunk
        if chunk is None or not chunk.fits or not any(step < each for each in chunk.record.decision.reused_steps):
            visit.first = None
        else:
            visit.keep()

    def _read(self, spec: VisitPoint, visit: Visit, step: int) -> Line | None:
        """Look at the calls that were not, and at this one: the line of a step that is reused."""
        known = self._compared(visit, step) if self._chunk is not None else []
        drifts = [_drift(spec, visit, each) for each in known]
        waiting = [*(self._chunk.kept if self._chunk is not None else ()), *self._unread]
        numbers = iter(read(waiting, [each for each in drifts if each is not None]))
        measured = {each: None if drift is None else next(numbers) for each, drift in zip(known, drifts, strict=True)}
        self._follow_unread()
        chunk = self._chunk
        assert chunk is not None
        step = (len(chunk.times) - 1) // self._schedule.lanes
        line = self._line(spec, visit, step, measured) if self._may_be_reused(step) else None
        if line is None:
            self._keep(visit, step)
            chunk.kept += [visit] if visit.keeps else []
        self._let_go(step)
        return line

    def _compared(self, visit: Visit, step: int) -> list[Visit]:
        """Computed steps that this one may turn out to follow."""
        if not self._may_be_reused(step):
            return []
        visit.compare()
        assert self._chunk is not None
        made = [each for each in (*self._chunk.kept, *self._unread) if each.prediction is not None]
        return [each for each in made if visit.is_like(each)]

    def _follow_unread(self) -> None:
        for each in self._unread:
            self._follow(each)
        self._unread = []

    def _follow(self, visit: Visit) -> None:
        """Find the place of a call that was read, in its order."""
        told, chunk = visit.told, self._chunk
        assert told is not None
        if chunk is None or not chunk.holds(told):
            chunk = self._chunk = self._begun(told)
        elif told.rest != chunk.told.rest:
            chunk.fits = False  # a call beside the loop, such as one that fills a cache
        else:
            chunk.times.append(told.at)
        due = (len(chunk.times) - 1) // self._schedule.lanes
        chunk.fits &= due < len(self._schedule.times) and self._schedule.times[due] == told.at
        visit.step = due
        if visit.keeps:
            chunk.kept.append(visit)

    def _begun(self, told: Told) -> _Chunk:
        """A chunk that begins with a call; the one before says which steps it has."""
        if self._chunk is not None:
            self._schedule = Schedule.of(self._chunk.times) or self._schedule
        steps = self._schedule.interior
        policy = dataclasses.replace(self._policy, steps=steps, denoising_steps=max(len(self._schedule.times), 1))
        self._planner.rules = rules_of(policy)
        self._path = continued(self._path, told.cameras, told.dtype)
        try:
            views = views_of(policy.view_depth, told.intrinsics)
            record = self._planner.record(self._path, dtype=told.dtype, views=views)
        except InputError as error:
            log.warning("nothing is reused in this chunk: %s", error)
            self._path, record = None, self._planner.undecided(0)
        return _Chunk(record, told, [told.at], bool(steps))

    def _line(self, spec: VisitPoint, visit: Visit, step: int, measured: dict[Visit, float | None]) -> Line | None:
        """The line through what the latest computed steps of the same content gave."""
        chunk = self._chunk
        assert chunk is not None
        same = [each for each in chunk.kept if each in measured and visit.has_content_of(each)]
        if not same:
            chunk.record.refused(step, "it is given something else than the step before it")
            return None
        steps = [each.step for each in (*same, visit)]
        if len(set(steps)) < len(steps):
            chunk.record.refused(step, "two calls of one step are given the same, and nothing tells them apart")
            return None
        latest, previous = same[-1], same[-2] if spec.extrapolates and len(same) > 1 else same[-1]
        drift = measured[latest]
        if spec.drift is not None and (drift is None or not chunk.record.checked(step, drift, spec.drift)):
            return None
        assert visit.told is not None and latest.told is not None and previous.told is not None
        apart = latest.told.at - previous.told.at
        weight = (visit.told.at - latest.told.at) / apart if apart else 0.0
        assert latest.prediction is not None and previous.prediction is not None
        return Line(latest.prediction, previous.prediction, torch.tensor(weight, dtype=torch.float64))

    def _let_go(self, step: int) -> None:
        """Forget what no step behind ``step`` can follow: of each content all but the latest two, in the end all."""
        chunk = self._chunk
        if chunk is None:
            return
        if not chunk.fits or not any(step <= each for each in chunk.record.decision.reused_steps):
            chunk.kept = []
        later = [(each, chunk.kept[place + 1 :]) for place, each in enumerate(chunk.kept)]
        chunk.kept = [each for each, behind in later if sum(map(each.has_content_of, behind)) < POINTS]


class FollowedPlanner(Planner):
    """A planner whose chunks are seen from outside.

    Attributes:
        loop: follows the calls.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__(rules_of(policy))
        self.loop = FollowedLoop(self, policy)

    def reset(self) -> None:
        """See :meth:`Planner.reset`."""
        super().reset()
        self.loop.forget()

    def state(self) -> dict[str, Any]:
        """See :meth:`Planner.state`."""
        loop = self.loop.state()
        return {**super().state(), "loop": loop}

    def restore(self, state: Mapping[str, Any], later: int = 0) -> None:
        """See :meth:`Planner.restore`."""
        super().restore(state, later)
        self.loop.restore(state["loop"], self.latest)


def _drift(spec: VisitPoint, visit: Visit, other: Visit) -> Tensor | None:
    if spec.drift is None or visit.first is None or other.first is None:
        return None
    return relative_change(visit.first, other.first, spec.group).amax()


def _hint_of(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor lies: another place hints at other content, the same place proves nothing."""
    version = None if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), tensor.shape, tensor.stride(), version
