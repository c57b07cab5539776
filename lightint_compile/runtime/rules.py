"""Rules that turn camera statistics into a decision: the model's own, the published ones, and ours.

The published rules are those of the Light Interaction release (arXiv 2605.31158), constants included. Ours differ where
that release is weak: a view counts as seen before only if it was seen *before the recent window* (walking forward
always sees what was just seen), the threshold has hysteresis, remembered clips are chosen for what they add together,
and the recent window follows how much the latents change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightint_compile.errors import OptionError
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.passes.ir.world_spec import PUBLISHED, WorldSpec
from lightint_compile.runtime.decision import Decision
from lightint_compile.runtime.view_overlap import Sight, View, angular_view

HYSTERESIS = 0.04
"""How far below the overlap at which a view starts to count as seen before it stops to."""


@dataclass(frozen=True)
class Situation:
    """What a rule sees of one chunk.

    Attributes:
        chunk: its number.
        extrinsics: [F + chunk, 4, 4] float64 world-to-camera of the history and of the chunk, the chunk last.
        dynamics: relative change between the newest latents, ``None`` when unknown.
        before: the decision for the chunk before, which hysteresis looks at.
        coming: latent frames of the chunk.
        lead: frames of the history in front of its first whole chunk.
    """

    chunk: int
    extrinsics: Tensor
    dynamics: float | None = None
    before: Decision | None = None
    coming: int = PUBLISHED.chunk
    lead: int = 0

    @property
    def frames(self) -> int:
        """Latent frames in the history."""
        return int(self.extrinsics.shape[0]) - self.coming


@dataclass(frozen=True)
class Remembered:
    """Clips of a history, seen from the coming views by a few of their frames.

    Attributes:
        starts: the first frame of each clip.
        probes: the frames of a clip that are looked at, counted from its first.
    """

    view: View
    situation: Situation
    starts: tuple[int, ...]
    probes: tuple[int, ...]

    @cached_property
    def overlap(self) -> Tensor:
        """Each clip's mean overlap [clips] over the coming frames and its probes."""
        return self._coming.overlap.reshape(-1, len(self.starts), len(self.probes)).mean((0, 2))

    @cached_property
    def best(self) -> float:
        """The largest overlap, 0 without clips."""
        return float(self.overlap.max()) if self.starts else 0.0

    def approached(self, first: int) -> list[int]:
        """The clips from number ``first`` on of which the coming frames see more than the newest frame does.

        The camera comes back to such a clip. Going on, forward or sideways, it sees less and less of any.
        """
        count = len(self.probes)
        now = self._sight.part(slice(1)).overlap_from(count * first).reshape(-1, count).mean(1)
        found: list[int] = (self.overlap[first:] > now + 1e-6).nonzero().flatten().tolist()
        return [first + place for place in found]

    def covers(self, places: Sequence[int]) -> NDArray[np.bool_]:
        """Which points of each coming view any probe of each of these clips sees: bool [places, coming, points]."""
        shape = self.situation.coming, len(self.starts), len(self.probes), -1
        seen = self._coming.covers.numpy().reshape(shape)[:, list(places)]
        union: NDArray[np.bool_] = np.logical_or.reduce(seen, axis=2).swapaxes(0, 1)
        return union

    @cached_property
    def _coming(self) -> Sight:
        return self._sight.part(slice(1, None))

    @cached_property
    def _sight(self) -> Sight:
        """The newest frame and the coming ones, and the probes of each clip."""
        extrinsics = self.situation.extrinsics
        probes = [start + probe for start in self.starts for probe in self.probes]
        return Sight.of(self.view, extrinsics[-self.situation.coming - 1 :], extrinsics[probes])


@dataclass(frozen=True)
class Rules(WorldSpec, ABC):
    """How context and steps are chosen in a world.

    Attributes:
        view: the field of view of the cameras, where it is not that by which the model retrieves its memory.
    """

    view: View | None = None

    @abstractmethod
    def decide(self, situation: Situation) -> Decision:
        """The decision for one chunk."""

    def seeing(self, view: View) -> Rules:
        """The same rules for cameras of another field of view; the model goes on retrieving as it does."""
        return replace(self, view=view)

    @cached_property
    def camera_view(self) -> View:
        """The field of view of the cameras."""
        return self.view or angular_view(*self.fov, self.view_depth)

    def remembered(self, situation: Situation, recent: int) -> Remembered:
        """The clips before the recent window, as the coming views see them; whole chunks behind an image in front."""
        starts = range(situation.lead + self.clip, situation.frames - recent, self.clip)
        return Remembered(self.camera_view, situation, tuple(starts), self.clip_probes)

    def joined(self, frames: int, window: int, clips: Sequence[int]) -> tuple[int, ...]:
        """The first clip, those that begin at ``clips`` and the newest ``window`` frames, each once, ascending."""
        chosen = {*range(min(self.clip, frames)), *range(max(frames - window, 0), frames)}
        chosen.update(frame for start in clips for frame in range(start, start + self.clip))
        return tuple(sorted(chosen))

    def usual(self, frames: int) -> int:
        """Context frames that the unaccelerated model gathers from a history of ``frames``."""
        return min(frames, self.memory)


@dataclass(frozen=True)
class ModelRules(Rules):
    """What the model does by itself: sink, the best clip, the recent window; every step is computed."""

    def decide(self, situation: Situation) -> Decision:
        """See :meth:`Rules.decide`."""
        frames = situation.frames
        if frames <= self.memory:
            return Decision(chunk=situation.chunk, context_frames=tuple(range(frames)))
        clips = self.remembered(situation, self.recent)
        wanted = max(self.memory - self.recent - self.clip, 0) // self.clip
        best = clips.overlap.argsort(descending=True, stable=True)[:wanted].tolist()
        return Decision(
            chunk=situation.chunk,
            context_frames=self.joined(frames, self.recent, [clips.starts[i] for i in best]),
            overlap=clips.best,
        )


@dataclass(frozen=True)
class PublishedRules(Rules):
    """The release's rules: 12 frames of memory, 4 recent, gate 0.7 for context and for reusing steps 1 and 2.

    Its numbers are its own, made for :data:`~lightint_compile.passes.ir.world_spec.PUBLISHED`, and stay in any world.
    """

    kept: int = 12
    window: int = 4
    gate: float = 0.7
    steps: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        super().__post_init__()
        clip = self.clip
        if not (0 <= self.gate <= 1 and self.window >= clip and clip + self.window <= self.kept):
            why = f"gate={self.gate}, window={self.window}, kept={self.kept}"
            fix = f"a gate from 0 to 1, a window of at least {clip}, and room for it and the first clip"
            raise OptionError("thresholds out of range", where="rules", why=why, fix=fix)

    def decide(self, situation: Situation) -> Decision:
        """See :meth:`Rules.decide`."""
        frames = situation.frames
        if frames < self.kept:
            return Decision(chunk=situation.chunk, context_frames=tuple(range(max(frames, 0))), threshold=self.gate)
        clips = self.remembered(situation, self.window)
        passes = clips.best >= self.gate
        context = self.joined(frames, self.window, [clips.starts[int(clips.overlap.argmax())]] if passes else [])
        return Decision(
            chunk=situation.chunk,
            context_frames=context,
            reused_steps=self.steps if passes else (),
            overlap=clips.best,
            threshold=self.gate,
            novel=not passes,
            saved_frames=self.usual(frames) - len(context),
        )


@dataclass(frozen=True)
class AdaptiveRules(Rules):
    """Ours; see the module's text.

    Attributes:
        enter, leave: overlap at which a view starts, and stops, to count as seen before.
        shortest, longest: bounds of the recent window in latent frames.
        lively: relative change between the newest latents from which the window is longest.
        clips: most remembered clips.
        gain: share of the coming view that a further clip must add.
        adapt_context, reuse: whether context, and steps, are decided at all.
        steps: the interior steps that may be reused; :meth:`of` takes all of its world.
    """

    enter: float = 0.72
    leave: float = 0.68
    shortest: int = 4
    longest: int = 12
    lively: float = 1.6
    clips: int = 1
    gain: float = 0.05
    adapt_context: bool = True
    reuse: bool = True
    steps: tuple[int, ...] = PUBLISHED.interior_steps

    @classmethod
    def of(cls, world: WorldSpec, **more: Any) -> Self:
        """See :meth:`WorldSpec.of`; the first clip and a remembered one fit beside the longest recent window."""
        clip = world.clip
        longest = max(min(world.memory - 2 * clip, 3 * clip), clip)
        return super().of(world, **{"shortest": clip, "longest": longest, "steps": world.interior_steps, **more})

    def __post_init__(self) -> None:
        super().__post_init__()
        ordered = 0 <= self.leave <= self.enter <= 1 and self.clip <= self.shortest <= self.longest
        if not ordered:
            why = f"leave={self.leave}, enter={self.enter}, shortest={self.shortest}, longest={self.longest}"
            fix = f"0 <= leave <= enter <= 1 and {self.clip} <= shortest <= longest"
            raise OptionError("thresholds out of range", where="options", why=why, fix=fix)

    def decide(self, situation: Situation) -> Decision:
        """See :meth:`Rules.decide`."""
        clips = self.remembered(situation, self.shortest)
        places = self._revisited(clips)
        overlap = float(clips.overlap[places].max()) if places else 0.0
        threshold = self.leave if situation.before is not None and not situation.before.novel else self.enter
        novel = overlap < threshold
        context = self._context(situation, clips, [] if novel else places)
        return Decision(
            chunk=situation.chunk,
            context_frames=context,
            reused_steps=self.steps if self.reuse and not novel else (),
            overlap=overlap,
            threshold=threshold,
            novel=novel,
            dynamics=situation.dynamics,
            saved_frames=self.usual(situation.frames) - len(context),
        )

    def _revisited(self, clips: Remembered) -> list[int]:
        """The clips that speak for a revisit: older than the longest recent window, or approached again."""
        old = sum(start < clips.situation.frames - self.longest for start in clips.starts)
        return [*range(old), *(clips.approached(old) if old < len(clips.starts) else ())]

    def _context(self, situation: Situation, clips: Remembered, places: Sequence[int]) -> tuple[int, ...]:
        frames = situation.frames
        if not self.adapt_context:
            return ModelRules.of(self).decide(situation).context_frames
        window = self._window(situation.dynamics)
        if frames <= self.clip + window:
            return tuple(range(frames))
        before = [place for place in places if clips.starts[place] < frames - window]
        return self.joined(frames, window, self._covering(clips, before))

    def _window(self, dynamics: float | None) -> int:
        """The recent window, in whole clips, between the bounds: linear in the relative change of the latents."""
        share = 0.0 if dynamics is None else min(max(dynamics / self.lively - 1.0, 0.0), 1.0)
        return self.shortest + self.clip * round(share * (self.longest - self.shortest) / self.clip)

    def _covering(self, clips: Remembered, places: Sequence[int]) -> list[int]:
        """Clips chosen one by one for the part of the coming views that those before do not cover."""
        if not places:
            return []
        seen = clips.covers(places)
        chosen: list[int] = []
        covered = np.zeros(seen.shape[1:], dtype=np.bool_)
        while len(chosen) < min(self.clips, len(places)):
            added = (seen & ~covered).sum((1, 2), dtype=np.int32)
            added[chosen] = -1
            best = int(added.argmax())
            if chosen and added[best] < self.gain * covered.size:
                break
            chosen.append(best)
            covered |= seen[best]
        return [clips.starts[places[each]] for each in chosen]


def rules_of(policy: Policy) -> Rules:
    """The rules that a policy spells, in its world."""
    gate = policy.overlap
    if policy.rules == "published":
        return PublishedRules.of(policy, steps=policy.steps, **({} if gate is None else {"gate": gate}))
    return AdaptiveRules.of(
        policy,
        adapt_context=policy.adapt_context,
        reuse=bool(policy.steps),
        steps=policy.steps,
        **({} if gate is None else {"enter": gate, "leave": max(gate - HYSTERESIS, 0.0)}),
    )
