"""One of the two models along the walk: what it showed, how long it took, what it decided."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lightint_compile.demo.canvas import DIM, FAINT, INK, Canvas, Colour
from lightint_compile.runtime.decision import Decision


@dataclass(frozen=True)
class Side:
    """A model's rollout.

    Attributes:
        name: what stands above its frames.
        frames: [F, 3, H, W], those of the given chunks in front.
        milliseconds: of every chunk that was not given.
        cold_seconds: what its first calls took, compilation included.
        decisions: of every chunk, given ones included.
    """

    name: str
    colour: Colour
    frames: Tensor
    milliseconds: Sequence[float]
    cold_seconds: float
    decisions: Sequence[Decision]

    @property
    def typical(self) -> float:
        """The median chunk, in milliseconds."""
        return statistics.median(self.milliseconds)

    def seconds_until(self, chunk: int, given: int) -> float:
        """What the chunks up to and with this one took."""
        return sum(self.milliseconds[: max(0, chunk + 1 - given)]) / 1e3


def draw_side(canvas: Canvas, side: Side, x: int, y: int, width: int, at: At) -> None:
    """Time, context and steps of a chunk, below the model's frame."""
    decision = side.decisions[at.chunk]
    _draw_time(canvas, side, x, y, width, at)
    if at.chunk < at.given:
        canvas.text(x, y + 58, "given: encoded truth", FAINT)
        return
    looked = f"looks back at {len(decision.context_frames)} frames"
    canvas.text(x, y + 52, looked + (f", {decision.saved_frames} fewer" if decision.saved_frames else ""))
    _draw_context(canvas, side, x, y + 74, width, at)
    reused = [step for step in decision.reused_steps if step not in decision.refused_steps]
    said = f"reuses {', '.join(map(str, reused))} of steps 0 to {at.steps - 1}" if reused else "computes every step"
    canvas.text(x, y + 98, said)
    for step in range(at.steps):
        left = x + step * 26
        canvas.box((left, y + 120, left + 20, y + 136), None if step in reused else side.colour, side.colour)
    canvas.text(x, y + 146, _why(decision, at), FAINT, 13)


@dataclass(frozen=True)
class At:
    """Where a film is: chunk number, latent frames before and behind it, chunks given, frames of the walk, steps.

    `longest` is what the slower model takes for the whole walk, in seconds.
    """

    chunk: int
    first: int
    end: int
    given: int
    frames: int
    steps: int
    longest: float


def _why(decision: Decision, at: At) -> str:
    """What the decision was made on; nothing for a model that does not decide."""
    if not decision.threshold:
        return ""
    seen = "not seen before" if decision.novel else "seen before"
    steps = "step" if len(decision.refused_steps) == 1 else "steps"
    refused = f", {steps} {', '.join(map(str, decision.refused_steps))} drifted" if decision.refused_steps else ""
    return f"{seen}: overlap {decision.overlap:.2f}{refused}"


def _draw_time(canvas: Canvas, side: Side, x: int, y: int, width: int, at: At) -> None:
    seconds = side.seconds_until(at.chunk, at.given)
    number = at.chunk - at.given
    now = f"{side.milliseconds[number]:.0f} ms this chunk" if number >= 0 else ""
    canvas.text(x, y, f"{seconds:.1f} s", side.colour, 22)
    canvas.text(x + 90, y + 6, now, INK)
    canvas.box((x, y + 32, x + width - 1, y + 40), fill=DIM)
    canvas.box((x, y + 32, x + max(1.0, (width - 1) * seconds / at.longest), y + 40), fill=side.colour)


def _draw_context(canvas: Canvas, side: Side, x: int, y: int, width: int, at: At) -> None:
    """A cell a latent frame: those looked back at filled, those made so far and the coming ones outlined."""
    wide = width / at.frames
    context = set(side.decisions[at.chunk].context_frames)
    for frame in range(at.frames):
        box = (x + frame * wide, y, x + (frame + 1) * wide - 2, y + 14)
        fill = side.colour if frame in context else INK if at.first <= frame < at.end else DIM
        canvas.box(box, fill=fill if frame < at.end else None, outline=None if frame < at.end else DIM)
