"""Which context frames need not be computed again, and where each of them is kept: bookkeeping without tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from lightint_compile.passes.ir.world_spec import PUBLISHED
from lightint_compile.runtime.decision import Decision

Fingerprint: TypeAlias = tuple[Any, ...]
"""Checksums of everything that belongs to a frame: equal for frames that are equal bit by bit."""


@dataclass
class _Kept:
    """A frame whose values are kept: in which slot, made in which chunk, last used in which."""

    slot: int
    fingerprint: Fingerprint
    made: int
    used: int


@dataclass(frozen=True)
class Share:
    """How one chunk's context divides.

    Attributes:
        chunk: its number.
        kept: slots of the frames in front, whose values are kept.
        fresh: slots for the frames behind them, which are computed; ``None`` for those that have no room.
        older: for fresh frames that were kept until now, their place among the fresh ones.
        frames: the fresh frames with their fingerprints.
    """

    chunk: int
    kept: tuple[int, ...]
    fresh: tuple[int | None, ...]
    older: tuple[int, ...]
    frames: tuple[tuple[int, Fingerprint], ...]


class KeptFrames:
    """The frames of one rollout whose values are kept, at most ``capacity``; the one unused for longest makes room.
    Where a context is larger, its first frames are kept.

    Kept is a beginning of the context: what comes behind the first frame that is not kept is computed again, and the
    newest clip always. Earlier frames depend less on changed frames than later ones, so only a prefix is reused.

    Args:
        age: most chunks for which a frame's values are used after the one that made them.
        newest: frames at the end of the context that are always computed.
    """

    def __init__(self, capacity: int, age: int, newest: int = PUBLISHED.clip) -> None:
        self.capacity, self.age, self._newest = capacity, age, newest
        self.limit = age
        self._frames: dict[int, _Kept] = {}

    def share(self, chunk: int, context: Sequence[int], fingerprints: Mapping[int, Fingerprint]) -> Share:
        """Divide a chunk's ``context`` (frame numbers, ascending), and reserve slots for what will be computed.

        Reserved frames count as kept only after :meth:`commit`, so a chunk that fails leaves nothing half-made.
        """
        count = self._usable(chunk, context, fingerprints)
        for frame in context[:count]:
            self._frames[frame].used = chunk
        fresh = [(frame, fingerprints[frame]) for frame in context[count:]]
        older = [place for place, (frame, now) in enumerate(fresh) if self._is_older(frame, now, chunk)]
        kept = tuple(self._frames[frame].slot for frame in context[:count])
        slots = self._reserve([frame for frame, _ in fresh], set(context))
        return Share(chunk, kept, slots, tuple(older), tuple(fresh))

    def commit(self, share: Share) -> None:
        """The fresh frames of ``share`` are kept from now on."""
        for slot, (frame, fingerprint) in zip(share.fresh, share.frames, strict=True):
            if slot is not None:
                self._frames[frame] = _Kept(slot, fingerprint, share.chunk, share.chunk)

    def drifted(self, drift: float, most: float) -> None:
        """Kept values turned out ``drift`` away from new ones: keep for half as long above ``most``, longer below."""
        if not drift <= most:
            self.limit //= 2
        elif drift <= most / 2:
            self.limit = min(max(2 * self.limit, 1), self.age)

    def state(self) -> dict[str, Any]:
        """Plain data; :meth:`restore` takes it back."""
        frames = [(frame, kept.slot, kept.fingerprint, kept.made, kept.used) for frame, kept in self._frames.items()]
        return {"limit": self.limit, "frames": frames}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state`, for frames of the same capacity."""
        self.limit = state["limit"]
        self._frames = {frame: _Kept(*rest) for frame, *rest in state["frames"]}

    def _usable(self, chunk: int, context: Sequence[int], fingerprints: Mapping[int, Fingerprint]) -> int:
        usable = max(len(context) - self._newest, 0)
        for count, frame in enumerate(context[:usable]):
            kept = self._frames.get(frame)
            if kept is None or kept.fingerprint != fingerprints[frame]:
                return count
            if not 0 <= chunk - kept.made <= self.limit:
                return count
        return usable

    def _is_older(self, frame: int, now: Fingerprint, chunk: int) -> bool:
        kept = self._frames.get(frame)
        return kept is not None and kept.made < chunk and kept.fingerprint == now

    def _reserve(self, fresh: Sequence[int], context: set[int]) -> tuple[int | None, ...]:
        """A slot for every fresh frame: its own, a free one, or that of a frame that is not in use, while there are."""
        own = {frame: kept.slot for frame in fresh if (kept := self._frames.pop(frame, None)) is not None}
        taken = {kept.slot for kept in self._frames.values()} | set(own.values())
        free = [slot for slot in range(self.capacity) if slot not in taken]
        idle = sorted((kept.used, frame) for frame, kept in self._frames.items() if frame not in context)
        for frame in fresh:
            if frame not in own and (free or idle):
                own[frame] = free.pop(0) if free else self._frames.pop(idle.pop(0)[1]).slot
        return tuple(map(own.get, fresh))


def kept_along(decisions: Sequence[Decision], age: int, capacity: int, newest: int = PUBLISHED.clip) -> list[Decision]:
    """Decisions of one rollout with the context frames whose values would be kept for at most ``age`` chunks."""
    frames, known = KeptFrames(capacity, age, newest), []
    for decision in decisions:
        share = frames.share(decision.chunk, decision.context_frames, dict.fromkeys(decision.context_frames, ()))
        frames.commit(share)
        known.append(dataclasses.replace(decision, kept_frames=len(share.kept) if age else 0))
    return known
