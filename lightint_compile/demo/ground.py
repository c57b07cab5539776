"""The map of a walk: walls, the way so far and to come, the camera and what it sees."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lightint_compile.demo.canvas import BACKGROUND, DIM, FAINT, INK, OURS, Canvas
from lightint_compile.evaluating.true_world import FromAbove
from lightint_compile.runtime.path_from_above import from_above

At = Callable[[float, float], tuple[float, float]]
"""From cells (east, north) to pixels."""

_AROUND = 2.0
"""Cells that are shown around the walk."""

_SIGHT = 1.6
"""Cells that the field of view reaches on the map."""


@dataclass(frozen=True)
class Ground:
    """A square part of a scene from above, north (+z) up.

    Attributes:
        walls: bool [rows, columns], by z and x.
        places: (x, z, heading) of every frame, in cells and radians.
        left, bottom: the corner of what is shown.
        width: cells along a side of it.
        half_view: half of the horizontal field of view in radians.
    """

    walls: Tensor
    places: list[tuple[float, float, float]]
    left: float
    bottom: float
    width: float
    half_view: float

    @classmethod
    def of(cls, above: FromAbove, intrinsics: Tensor) -> Ground:
        """The part around the walk; intrinsics [frames, 3, 3] over the image's size."""
        path = from_above(above.cameras)
        xs, zs = path["x"], path["z"]
        width = max(max(xs) - min(xs), max(zs) - min(zs)) + 2 * _AROUND
        left, bottom = ((min(each) + max(each) - width) / 2 for each in (xs, zs))
        half = math.atan(0.5 / float(intrinsics[0, 0, 0]))
        return cls(above.walls, list(zip(xs, zs, path["heading"], strict=True)), left, bottom, width, half)

    def draw(self, canvas: Canvas, x: int, y: int, side: int, frame: int) -> None:
        """The map at frame number `frame`, `side` pixels wide and high."""
        scale = side / self.width

        def at(east: float, north: float) -> tuple[float, float]:
            return x + (east - self.left) * scale, y + side - (north - self.bottom) * scale

        self._draw_cells(canvas, at, (x, y, x + side - 1, y + side - 1))
        canvas.line([at(*place[:2]) for place in self.places], FAINT, 1)
        canvas.line([at(*place[:2]) for place in self.places[: frame + 1]], OURS, 3)
        here, north, heading = self.places[frame]
        edges = [heading + self.half_view * share / 4 for share in range(-4, 5)]
        seen = [at(here + _SIGHT * math.sin(edge), north + _SIGHT * math.cos(edge)) for edge in edges]
        canvas.wedge([at(here, north), *seen], OURS)
        canvas.dot(*at(here, north), 5, INK)

    def _draw_cells(self, canvas: Canvas, at: At, frame: tuple[int, int, int, int]) -> None:
        """Walls dark, free cells lighter; beyond the edge all is wall."""
        canvas.box(frame, fill=BACKGROUND, outline=DIM)
        rows, columns = self.walls.shape
        for row in range(rows):
            for column in range(columns):
                if not self.walls[row, column]:
                    (left, bottom), (right, top) = at(column, row), at(column + 1, row + 1)
                    left, right = max(left, frame[0]), min(right, frame[2])
                    top, bottom = max(top, frame[1]), min(bottom, frame[3])
                    if left < right and top < bottom:
                        canvas.box((left, top, right, bottom), fill=DIM)
