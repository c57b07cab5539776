"""What was decided for one chunk, with the numbers that led there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One chunk's decision.

    Attributes:
        chunk: its number in the rollout, from 0.
        context_frames: latent frames gathered as context, ascending.
        asked_places: of the frames that a memory of single frames asks for, the places of those that are gathered;
            ``None`` for another memory, and where nothing was decided: then it gathers all of them.
        reused_steps: denoising steps that may reuse an earlier output (the drift check may still refuse them).
        overlap: largest overlap of the coming views with a remembered clip, in [0, 1]; 0 when there is no candidate.
        threshold: the overlap from which the coming views count as seen before.
        novel: whether the camera looks at something it has not seen before the recent window.
        dynamics: relative change between the newest latents, ``None`` when they were not looked at.
        saved_frames: context frames fewer than the unaccelerated model gathers.
        kept_frames: context frames in front whose keys and values were kept from an earlier chunk.
        refused_steps: steps whose drift check refused the reuse, known after the chunk ran; of a loop outside of the
            module also those that were given something else than the step before.
        drifts: what the drift checks measured, as (step, relative change).
        setting: the setting that an error budget put in force; empty without a budget.
        elements: of a batch whose elements reuse different steps, the decision of each, in order; empty where they
            agree. Context is shared. What is said of the batch is then what holds for all of it: steps that all may
            reuse, steps that any refused, the largest drifts, the least overlap.
    """

    chunk: int
    context_frames: tuple[int, ...]
    reused_steps: tuple[int, ...] = ()
    overlap: float = 0.0
    threshold: float = 0.0
    novel: bool = True
    dynamics: float | None = None
    saved_frames: int = 0
    kept_frames: int = 0
    refused_steps: tuple[int, ...] = ()
    drifts: tuple[tuple[int, float], ...] = ()
    setting: str = ""
    elements: tuple[Decision, ...] = ()
    asked_places: tuple[int, ...] | None = None

    def after_check(self, step: int, drift: float, refused: bool) -> Decision:
        """The decision with what the drift check of a step found."""
        known = self.refusing(step) if refused else self
        return dataclasses.replace(known, drifts=(*self.drifts, (step, drift)))

    def refusing(self, step: int) -> Decision:
        """The decision with a step that is computed; one that is called twice, as under guidance, is named once."""
        if step in self.refused_steps:
            return self
        return dataclasses.replace(self, refused_steps=(*self.refused_steps, step))

    def with_elements(self, elements: Sequence[Decision]) -> Decision:
        """The decision of a batch with those of its elements, where they differ in the steps that are reused."""
        done = {(each.reused_steps, each.refused_steps) for each in elements}
        shared = {name: getattr(self, name) for name in _SHARED}
        own = tuple(dataclasses.replace(each, **shared) for each in elements) if len(done) > 1 else ()
        return dataclasses.replace(self, elements=own)

    @property
    def margin(self) -> float:
        """How far the overlap is from the threshold; small means that the decision was close."""
        return self.overlap - self.threshold

    def __str__(self) -> str:
        seen = "seen before" if not self.novel else "not seen before"
        steps = [f"steps {', '.join(map(str, self.reused_steps))} may be reused"] if self.reused_steps else []
        refused = [f"refused {', '.join(map(str, self.refused_steps))}"] if self.refused_steps else []
        kept = f", {self.kept_frames} kept" if self.kept_frames else ""
        context = f"{len(self.context_frames)} context frames ({self.saved_frames} fewer{kept})"
        view = f"overlap {self.overlap:.3f} against {self.threshold:.2f}, {seen}"
        each = [f"element {number}: {own._steps}" for number, own in enumerate(self.elements)]
        return f"chunk {self.chunk}: " + "; ".join([context, view, *steps, *refused, *each])

    @property
    def _steps(self) -> str:
        """The steps that are reused in the end, as text."""
        steps = [str(step) for step in self.reused_steps if step not in self.refused_steps]
        return f"reuses {', '.join(steps)}" if steps else "computes every step"

    def to_dict(self) -> dict[str, Any]:
        """The decision as JSON-ready data, with its margin; ``elements`` and ``asked_places`` where there are any."""
        data = dataclasses.asdict(self) | {"margin": self.margin, "elements": [e.to_dict() for e in self.elements]}
        left = {"elements": not self.elements, "asked_places": self.asked_places is None}
        return {key: value for key, value in data.items() if not left.get(key)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`, also after a way through JSON."""
        given = {name: _as_tuple(value) for name, value in data.items() if name not in ("margin", "elements")}
        return cls(**given, elements=tuple(map(cls.from_dict, data.get("elements", ()))))


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, (list, tuple)) else value


_SHARED = ("context_frames", "saved_frames", "kept_frames", "setting", "asked_places")
"""What a batch decides together."""
