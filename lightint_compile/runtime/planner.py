"""Decisions over rollouts: asked once a chunk, with a list of what was decided in each."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from lightint_compile.errors import InputError
from lightint_compile.runtime.cameras import rigid
from lightint_compile.runtime.chunk_record import ChunkRecord
from lightint_compile.runtime.decision import Decision
from lightint_compile.runtime.rules import Rules, Situation
from lightint_compile.runtime.view_overlap import View

log = logging.getLogger("lightint_compile.runtime")

SLOTS = 4
"""Rollouts that are told apart; the one unused for longest makes room."""


@dataclass
class _Rollout:
    """Cameras [B, F, 4, 4] so far, and the record of each chunk.

    Attributes:
        began, asked: when the first and the last of the decisions were made.
    """

    cameras: Tensor
    records: list[ChunkRecord] = field(default_factory=list)
    began: int = 0
    asked: int = 0

    def state(self) -> dict[str, Any]:
        """Plain data and tensors; :meth:`from_state` takes it back."""
        records = [record.state() for record in self.records]
        return {"cameras": self.cameras.clone(), "records": records, "began": self.began, "asked": self.asked}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], later: int) -> Self:
        """The inverse of :meth:`state`, ``later`` on the clock."""
        records = [ChunkRecord.from_state(record) for record in state["records"]]
        return cls(state["cameras"].clone(), records, state["began"] + later, state["asked"] + later)

    def leads_to(self, cameras: Tensor) -> bool:
        """Whether ``cameras`` are these, or these and more."""
        frames = self.cameras.shape[1]
        same_batch = self.cameras.shape[0] == cameras.shape[0]
        return same_batch and frames <= cameras.shape[1] and torch.equal(cameras[:, :frames], self.cameras)

    def is_remembered_by(self, cameras: Tensor, coming: int) -> bool:
        """Whether ``cameras`` are these, or have these ``coming`` views among the frames of their context."""
        if self.cameras.shape[0] != cameras.shape[0] or torch.equal(self.cameras, cameras):
            return self.cameras.shape[0] == cameras.shape[0]
        if cameras.shape[1] < 2 * coming:
            return False
        clips = cameras[:, :-coming].unfold(1, coming, 1).movedim(-1, 2)
        return bool((clips == self.cameras[:, None, -coming:]).flatten(2).all(2).all(0).any())


_clock = itertools.count(1)


def now() -> int:
    """The time on the clock of all planners."""
    return next(_clock)


class Planner:
    """Applies :class:`Rules` chunk by chunk and remembers its decisions.

    A call belongs to the rollout whose cameras it continues; one whose cameras continue none (another trajectory, a
    scene cut) begins another. The same chunk asked again, after an exception or for the second half of a guidance pair,
    is decided again from the chunk before it. No decision of one rollout reaches another.

    Where the context is ``given``, its frames are some of those before, in whatever number, and all that is known is
    their place in it. A call then belongs to the rollout whose coming views are in its context.

    A batch shares one decision. Where its elements are decided for themselves (``each``), every one of them follows its
    own chunk before, as it would alone.

    Args:
        most: context frames that a batch gets at most; as many as its elements want by default.
    """

    def __init__(self, rules: Rules, *, given: bool = False, each: bool = False, most: int | None = None) -> None:
        self.rules, self._given, self._each, self._most = rules, given, each, most
        self._coming = rules.chunk
        self._rollouts: list[_Rollout] = []
        self._left = False
        self._lock = threading.Lock()

    @property
    def decisions(self) -> list[Decision]:
        """The decisions of the rollout that was asked last, chunk by chunk; none once another ran without asking."""
        with self._lock:
            records = self._rollouts[-1].records if self._rollouts and not self._left else []
            return [record.decision for record in records]

    @property
    def latest(self) -> ChunkRecord | None:
        """The record of the chunk that was decided last."""
        with self._lock:
            return self._rollouts[-1].records[-1] if self._rollouts and self._rollouts[-1].records else None

    @property
    def path(self) -> Tensor | None:
        """The cameras [F, 4, 4] of the rollout that was asked last, of its first element; none of a given context."""
        with self._lock:
            return self._rollouts[-1].cameras[0] if self._rollouts and not self._given else None

    @property
    def ran(self) -> tuple[int, int]:
        """When the rollout that was asked last had its first decision and its last one, on a clock of all planners."""
        with self._lock:
            return (self._rollouts[-1].began, self._rollouts[-1].asked) if self._rollouts else (0, 0)

    def leave(self) -> None:
        """A chunk ran without a decision: until the next one, no decision is that of the rollout that ran last."""
        self._left = True

    def decide(self, extrinsics: Tensor, dynamics: float | None = None) -> Decision:
        """The decision for the chunk that the last of ``extrinsics`` (world-to-camera) belong to.

        Args:
            extrinsics: [F + chunk, 4, 4], or [B, F + chunk, 4, 4] for a batch, which shares one decision: frames that
                any element wants as context, steps that all may reuse.

        Raises:
            InputError: cameras that are not rigid transforms, or not whole chunks, with or without one frame in front.
        """
        return self.record(extrinsics, dynamics).decision

    def decide_each(self, extrinsics: Tensor, dynamics: float | None = None) -> tuple[Decision, tuple[Decision, ...]]:
        """:meth:`decide`, and the decision of every element by itself; of a batch that shares one, that one alone."""
        record = self.record(extrinsics, dynamics)
        return record.decision, record.own

    def record(
        self,
        extrinsics: Tensor,
        dynamics: float | None = None,
        dtype: torch.dtype | None = None,
        views: Sequence[View] = (),
    ) -> ChunkRecord:
        """:meth:`decide_each`, as what the chunk writes on while it runs.

        Args:
            dtype: the format that the cameras were rounded to, where they are no longer in it.
            views: the field of view of every element, or one for all; that of the rules where there is none.
        """
        if extrinsics.dim() not in (3, 4) or self._is_broken(extrinsics.shape[-3]):
            why = f"the shape is {tuple(extrinsics.shape)}, a chunk has {self._coming} latent frames"
            raise InputError("The cameras are no whole number of chunks.", where="extrinsics", why=why)
        cameras = rigid(extrinsics, dtype=dtype)
        cameras = cameras.reshape(-1, *cameras.shape[-3:])
        with self._lock:
            rollout = self._rollout(cameras)
            chunk = self._chunk(rollout, cameras)
            rollout.records = [record for record in rollout.records if record.decision.chunk < chunk]
            record = self._decided(rollout, chunk, cameras, self._rules_of(cameras.shape[0], views), dynamics)
            rollout.asked = now()
            rollout.began = rollout.began if rollout.records else rollout.asked
            rollout.records.append(record)
            rollout.cameras = cameras
            self._left = False
        log.info("%s", record.decision)
        return record

    def undecided(self, frames: int) -> ChunkRecord:
        """What is done after ``frames`` that nothing can be decided on; it is no decision of any rollout."""
        self.leave()
        decision = Decision(chunk=frames // self._coming, context_frames=self._newest(frames))
        return ChunkRecord(decision, (decision,))

    def _decided(
        self, rollout: _Rollout, chunk: int, cameras: Tensor, rules: Sequence[Rules], dynamics: float | None
    ) -> ChunkRecord:
        """The decisions of a batch: those with equal cameras, such as guidance pairs, share the work."""
        last = next((record for record in rollout.records[-1:] if record.decision.chunk == chunk - 1), None)
        first = _first(cameras, rules)
        found = {}
        for place in sorted({*first}):
            before = None if last is None else last.each(len(cameras))[place] if self._each else last.decision
            found[place] = rules[place].decide(self._situation(chunk, cameras[place], dynamics, before))
        if self._each:
            own = tuple(found[place] for place in first)
            return ChunkRecord(self._fitted(agreed(own), cameras).with_elements(own), own)
        decision = self._fitted(agreed([*found.values()]), cameras)
        return ChunkRecord(decision, (decision,))

    def _fitted(self, decision: Decision, cameras: Tensor) -> Decision:
        """The decision of a batch, which may want more frames than fit: it then gets the newest."""
        if self._most is None or len(decision.context_frames) <= self._most:
            return decision
        log.info("chunk %d: a batch wants more frames than fit; all get the newest", decision.chunk)
        return dataclasses.replace(decision, context_frames=self._newest(cameras.shape[1] - self._coming))

    def _newest(self, frames: int) -> tuple[int, ...]:
        """The first clip and as many of the newest frames as fit."""
        most = self.rules.memory if self._most is None else self._most
        return self.rules.joined(frames, most - self.rules.clip, ())

    def _situation(self, chunk: int, cameras: Tensor, dynamics: float | None, before: Decision | None) -> Situation:
        lead = 0 if self._given else self.rules.lead(len(cameras)) or 0
        return Situation(chunk, cameras, dynamics, before, self._coming, lead)

    def _rules_of(self, count: int, views: Sequence[View]) -> list[Rules]:
        """The rules of every element, in its own field of view."""
        own = list(views) if len(views) == count else list(views[:1]) * count
        return [self.rules.seeing(view) for view in own] or [self.rules] * count

    def reset(self) -> None:
        """Forget every rollout."""
        with self._lock:
            self._rollouts.clear()

    def state(self) -> dict[str, Any]:
        """Everything that is remembered between chunks, as plain data and tensors; :meth:`restore` takes it back."""
        with self._lock:
            return {"rollouts": [rollout.state() for rollout in self._rollouts], "left": self._left}

    def restore(self, state: Mapping[str, Any], later: int = 0) -> None:
        """Remember what :meth:`state` said, and nothing else, all times ``later`` on the clock."""
        rollouts = [_Rollout.from_state(rollout, later) for rollout in state["rollouts"]]
        with self._lock:
            self._rollouts, self._left = rollouts, state["left"]

    def _is_broken(self, frames: int) -> bool:
        return frames < self._coming if self._given else self.rules.lead(frames) is None

    def _chunk(self, rollout: _Rollout, cameras: Tensor) -> int:
        """The number of the chunk: by its place in the history, or the one after the chunk that was decided last."""
        if not self._given or not rollout.records:
            return cameras.shape[1] // self._coming - 1
        again = torch.equal(rollout.cameras, cameras)
        return rollout.records[-1].decision.chunk + (0 if again else 1)

    def _rollout(self, cameras: Tensor) -> _Rollout:
        """The rollout that ``cameras`` continue, of several the longest, or a new one; it is the last from now on."""
        if self._given:
            known = [rollout for rollout in self._rollouts if rollout.is_remembered_by(cameras, self._coming)]
            found = max(known, key=lambda rollout: torch.equal(rollout.cameras, cameras), default=None)
        else:
            known = [rollout for rollout in self._rollouts if rollout.leads_to(cameras)]
            found = max(known, key=lambda rollout: rollout.cameras.shape[1], default=None)
        found = found or _Rollout(cameras)
        others = [rollout for rollout in self._rollouts if rollout is not found]
        self._rollouts = [*others[-(SLOTS - 1) :], found]
        return found


def of_one_rollout(planners: Iterable[Planner]) -> list[Planner]:
    """Those of one model's planners that decided in the rollout that ran last.

    They are the one that was asked last, those that were asked since it began, and the one that decided the chunk
    before: graphs of other policies, as for a first chunk that has no context, have planners of their own.
    """
    made = [(each, each.ran, found) for each in dict.fromkeys(planners) if (found := each.decisions)]
    if not made:
        return []
    _, (began, _), latest = max(made, key=lambda each: each[1][1])
    before = latest[0].chunk - 1
    return [planner for planner, (_, asked), found in made if asked >= began or found[-1].chunk == before]


def agreed(decisions: Sequence[Decision]) -> Decision:
    """One decision for a batch: context that any element wants, steps that all may reuse, the least of the overlaps."""
    least = min(decisions, key=lambda decision: decision.overlap)
    if len(decisions) == 1:
        return least
    context = tuple(sorted({frame for decision in decisions for frame in decision.context_frames}))
    reused = tuple(step for step in least.reused_steps if all(step in d.reused_steps for d in decisions))
    fewest = max(len(decision.context_frames) + decision.saved_frames for decision in decisions)
    novel = any(decision.novel for decision in decisions)
    return dataclasses.replace(
        least,
        context_frames=context,
        reused_steps=reused,
        novel=novel,
        saved_frames=fewest - len(context),
        asked_places=_any_place(decisions),
    )


def _any_place(decisions: Sequence[Decision]) -> tuple[int, ...] | None:
    """Places that any element of a batch wants; ``None`` where one of them wants all."""
    wanted = [decision.asked_places for decision in decisions]
    return None if None in wanted else tuple(sorted({place for places in wanted for place in places or ()}))


def _first(cameras: Tensor, rules: Sequence[Rules]) -> list[int]:
    """For each element of a batch [B, F, 4, 4] the first one with the same cameras: guidance pairs share theirs."""
    found: list[int] = []
    for number, each in enumerate(cameras):
        alike = (p for p in {*found} if rules[p].view == rules[number].view and torch.equal(each, cameras[p]))
        found.append(next(alike, number))
    return found


def plan(extrinsics: Tensor, rules: Rules) -> list[Decision]:
    """The decisions of a whole rollout along ``extrinsics`` [F, 4, 4], without a model (and without its latents).

    Raises:
        InputError: as of :meth:`Planner.decide`.
    """
    planner, chunk, frames = Planner(rules), rules.chunk, int(extrinsics.shape[0])
    lead = rules.lead(frames)
    if lead is None:
        why = f"there are {frames} latent frames, a chunk has {chunk}"
        fix = 'a pose string has one frame more than its counts sum to: "w-63" is 64'
        raise InputError("The trajectory is no whole number of chunks.", where="trajectory", why=why, fix=fix)
    return [planner.decide(extrinsics[:last]) for last in range(lead + chunk, frames + 1, chunk)]
