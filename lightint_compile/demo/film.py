"""The frames of the film: truth, original and lightint beside each other, and under them map, decisions and time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightint_compile.demo.canvas import FAINT, INK, Canvas
from lightint_compile.demo.ground import Ground
from lightint_compile.demo.side import At, Side, draw_side
from lightint_compile.passes.ir.world_spec import WorldSpec

WIDTH, HEIGHT = 1024, 592
PANEL = 320
_LEFT, _TOP, _GAP = 16, 66, 16
_MAP = 182


@dataclass(frozen=True)
class Film:
    """Everything that is shown.

    Attributes:
        title: the model in a line.
        truth: rendered frames [F, 3, H, W].
        sides: the original and lightint.
        given: chunks of encoded truth in front.
        psnr: to the truth, [F] of each side, in dB.
    """

    title: str
    truth: Tensor
    sides: Sequence[Side]
    ground: Ground
    spec: WorldSpec
    given: int
    psnr: Sequence[Tensor]

    def pictures(self) -> Iterator[Any]:
        """A Pillow image a latent frame."""
        for frame in range(len(self.truth)):
            canvas = Canvas(WIDTH, HEIGHT)
            self._draw(canvas, frame)
            yield canvas.image

    def _draw(self, canvas: Canvas, frame: int) -> None:
        at = self._at(frame)
        canvas.text(_LEFT, 10, self.title, FAINT, 14)
        columns = [_LEFT + number * (PANEL + _GAP) for number in range(3)]
        canvas.text(columns[0], 40, f"truth, frame {frame + 1} of {len(self.truth)}", INK, 17)
        canvas.picture(columns[0], _TOP, self.truth[frame], PANEL)
        self.ground.draw(canvas, columns[0], _TOP + PANEL + 14, _MAP, frame)
        self._draw_legend(canvas, columns[0] + _MAP + 10, _TOP + PANEL + 14, at)
        for x, side, psnr in zip(columns[1:], self.sides, self.psnr, strict=True):
            canvas.text(x, 40, side.name, side.colour, 17)
            if at.chunk >= self.given:
                canvas.text(x + PANEL - 60, 42, f"{float(psnr[frame]):.1f} dB", FAINT, 15)
            canvas.picture(x, _TOP, side.frames[frame], PANEL)
            draw_side(canvas, side, x, _TOP + PANEL + 12, PANEL, at)

    def _draw_legend(self, canvas: Canvas, x: int, y: int, at: At) -> None:
        canvas.text(x, y, f"chunk {at.chunk + 1}", INK)
        canvas.text(x, y + 20, f"of {self.spec.chunks(len(self.truth))}", INK)
        for number, words in enumerate(("dB: PSNR", "to the truth", "bar: seconds", "cells: frames", "boxes: steps")):
            canvas.text(x, y + 62 + 20 * number, words, FAINT, 13)

    def _at(self, frame: int) -> At:
        chunk = next(k for k in range(len(self.truth)) if frame < self.spec.frames(k + 1))
        longest = max(sum(side.milliseconds) for side in self.sides) / 1e3
        first, end = self.spec.frames(chunk), self.spec.frames(chunk + 1)
        return At(chunk, first, end, self.given, len(self.truth), self.spec.denoising_steps, longest)
