"""Rules for a memory of single frames, each of which one coming frame asks for: what saw most of the same.

Such a model keeps what a chunk goes on from, the newest frames of its history, and for some coming frames, counted
back from the last, one earlier frame each. The last that is asked for gives way to one that is always remembered. So
it is in Matrix-Game-3; in the release of Light Interaction a frame is dropped where it saw less than 0.45 of what the
frame that asks for it will see, and a step is reused where none would be.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from lightint_compile.errors import OptionError
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.runtime.decision import Decision
from lightint_compile.runtime.rules import Rules, Situation, rules_of
from lightint_compile.runtime.view_overlap import PinholeView, View

_IMAGE = 1
"""Latent frames of the image that a video begins with; none of them is asked for."""


@dataclass(frozen=True)
class Asked:
    """What the coming frames of a chunk ask for.

    Attributes:
        frames: the earlier frame that saw most of what each will see, the last coming frame first.
        overlaps: how much, in [0, 1].
        approached: whether each sees more of its frame than the newest frame of the history does: the camera returns.
    """

    frames: tuple[int, ...]
    overlaps: tuple[float, ...]
    approached: tuple[bool, ...]


@dataclass(frozen=True)
class FrameMemoryRules(Rules):
    """What the model does by itself: every frame that is asked for; every step is computed."""

    def decide(self, situation: Situation) -> Decision:
        """See :meth:`Rules.decide`."""
        if situation.frames <= situation.lead:
            return Decision(chunk=situation.chunk, context_frames=())
        asked = self.asked(situation)
        return self._decision(situation, asked, [True] * len(asked.frames), reuses=False)

    @cached_property
    def camera_view(self) -> View:
        """A pinhole, which is what such a memory is chosen by."""
        return PinholeView(*self.fov, far=self.view_depth)

    def seeing(self, view: View) -> Rules:
        """The same: the model goes on retrieving as it does."""
        return self

    def asked(self, situation: Situation) -> Asked:
        """What the coming frames ask for, among all frames behind the image and before the newest ones."""
        cameras, every = situation.extrinsics, self.asked_every or 1
        coming = cameras[[len(cameras) - 1 - every * number for number in range(self.asked_frames)]]
        earlier = cameras[_IMAGE : situation.frames - self.recent]
        overlap = self.camera_view.overlap(coming, earlier)
        now = self.camera_view.overlap(cameras[situation.frames - 1 : situation.frames], earlier)[0]
        best = overlap.argmax(dim=1)
        most = overlap.gather(1, best[:, None])[:, 0]
        approached: Tensor = most > now[best] + 1e-6
        return Asked(tuple((best + _IMAGE).tolist()), tuple(most.tolist()), tuple(approached.tolist()))

    def _decision(self, situation: Situation, asked: Asked, kept: list[bool], *, reuses: bool) -> Decision:
        """The newest frames, the pinned one, and of those asked for, but for the last, the ones that are kept."""
        newest = range(situation.frames - self.recent, situation.frames)
        places = [place for place, stays in enumerate(kept[:-1]) if stays]
        chosen = [asked.frames[place] for place in places]
        context = tuple(sorted({self.pinned, *chosen, *newest}))
        return Decision(
            chunk=situation.chunk,
            context_frames=context,
            reused_steps=self.interior_steps if reuses else (),
            overlap=min(asked.overlaps),
            novel=not reuses,
            saved_frames=len(asked.frames) - len(places) - 1,
            asked_places=(*places, len(kept) - 1),
        )


@dataclass(frozen=True)
class PublishedFrameRules(FrameMemoryRules):
    """The release's rules: a frame stays at an overlap of 0.45, and steps are reused where every frame would.

    Attributes:
        gate: the overlap.
        adapt_context, reuse: whether frames are dropped, and steps reused, at all.
    """

    gate: float = 0.45
    adapt_context: bool = True
    reuse: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gate <= 1:
            raise OptionError(
                "thresholds out of range", where="rules", why=f"gate={self.gate}", fix="a gate from 0 to 1"
            )

    def decide(self, situation: Situation) -> Decision:
        """See :meth:`Rules.decide`."""
        if situation.frames <= situation.lead:
            return Decision(chunk=situation.chunk, context_frames=(), threshold=self.gate)
        asked = self.asked(situation)
        kept = self._kept(asked) if self.adapt_context else [True] * len(asked.frames)
        reuses = self.reuse and self._seen_before(asked)
        return replace(self._decision(situation, asked, kept, reuses=reuses), threshold=self.gate)

    def _kept(self, asked: Asked) -> list[bool]:
        return [overlap >= self.gate for overlap in asked.overlaps]

    def _seen_before(self, asked: Asked) -> bool:
        return min(asked.overlaps) >= self.gate


@dataclass(frozen=True)
class AdaptiveFrameRules(PublishedFrameRules):
    """Ours: a frame is gathered once, and steps are reused only where the camera comes back to what it saw.

    While it walks on, it sees more and more of what it saw, and comes back to nothing.
    """

    def _kept(self, asked: Asked) -> list[bool]:
        """Whatever two coming frames ask for covers the views of both."""
        known = {self.pinned}
        kept = []
        for frame, sees in zip(asked.frames, super()._kept(asked), strict=True):
            kept.append(sees and frame not in known)
            known.update([frame] * kept[-1])
        return kept

    def _seen_before(self, asked: Asked) -> bool:
        return super()._seen_before(asked) and all(asked.approached)


def rules_in_world(policy: Policy) -> Rules:
    """The rules that a policy spells, for a memory of clips or of single frames."""
    if policy.asked_every is None:
        return rules_of(policy)
    rules = PublishedFrameRules if policy.rules == "published" else AdaptiveFrameRules
    gate = {} if policy.overlap is None else {"gate": policy.overlap}
    return rules.of(policy, adapt_context=policy.adapt_context, reuse=bool(policy.steps), **gate)
