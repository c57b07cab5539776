"""What a training does, in numbers: batches, rates and how its time is shared out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from lightint_compile.models.maze.config import MazeSize
from lightint_compile.training.clock import Limit

PHASES = ("codec", "flow", "distil")
"""In the order they run."""


@dataclass(frozen=True)
class Plan:
    """The numbers of one training.

    `minutes` are those of every phase, in the order of `PHASES`; `steps` bound them by steps instead. `batch` counts
    walks of a process and step, `frames` those of a walk. The pool has `blocks` blocks of `block` walks, and one of
    them is renewed every `renewed_every` steps. `own_share` of a batch has a past of the model's own, made anew every
    `own_every` steps once `own_from` of the flow matching is done.
    """

    minutes: tuple[float, float, float]
    seed: int = 0
    steps: tuple[int, int, int] | None = None
    frames: int = 64
    batch: int = 16
    codec_batch: int = 64
    codec_mazes: int = 768
    codec_frames: int = 24
    blocks: int = 24
    block: int = 64
    renewed_every: int = 72
    own_share: float = 0.3
    own_from: float = 0.4
    own_every: int = 500
    codec_rate: float = 1e-3
    flow_rate: float = 1e-3
    distil_rate: float = 1e-4
    warmup: int = 150
    average: float = 0.998
    judged_mazes: int = 16

    @classmethod
    def of(cls, size: MazeSize, minutes: tuple[float, float, float], seed: int, batch: int | None = None) -> Plan:
        """The plan of a size."""
        plan = cls(minutes, seed)
        if size.name == "tiny":
            plan = dataclasses.replace(
                plan, frames=24, batch=8, codec_batch=16, codec_mazes=32, codec_frames=8, blocks=4, block=8,
                own_every=40, warmup=20, judged_mazes=2, flow_rate=2e-3, distil_rate=3e-4,
            )  # fmt: skip
        if size.name == "large":
            plan = dataclasses.replace(plan, batch=8, codec_batch=32, blocks=12, block=32, judged_mazes=8)
        return plan if batch is None else dataclasses.replace(plan, batch=batch)

    def without_codec(self) -> Plan:
        """With a codec that stays as it is: the others share its time as they share theirs."""
        codec, flow, distil = self.minutes
        more = codec * distil / (flow + distil) if flow + distil else 0.0
        return dataclasses.replace(self, minutes=(0.0, flow + codec - more, distil + more))

    def limit(self, phase: str) -> Limit:
        """The end of a phase."""
        number = PHASES.index(phase)
        return Limit(60.0 * self.minutes[number], None if self.steps is None else self.steps[number])
