"""An axis of tokens as stretches in order: grids of (frames, height, width), and tokens without one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import sympy

from lightint_compile.passes.analysis.grid_axes.axes import Origin
from lightint_compile.passes.ir.fake_values import Size, size_of
from lightint_compile.passes.ir.sizes import same, total


@dataclass(frozen=True)
class Grid:
    """A block of tokens in frame-major, then row, then column order.

    Attributes:
        frames, height, width: tokens along each; an expression where the size is symbolic.
        seed: name of the node that made the grid; equal seeds are the same tokens.
        first_frame: the first frame of the seed's grid that is here, where it was sliced.
        origins: where each of the three axes came from, ``None`` for a single image.
    """

    frames: Size
    height: Size
    width: Size
    seed: str
    first_frame: Size = 0
    origins: tuple[Origin | None, Origin | None, Origin | None] = (None, None, None)

    @property
    def shape(self) -> tuple[Size, Size, Size]:
        """(frames, height, width)."""
        return (self.frames, self.height, self.width)

    @property
    def tokens(self) -> Size:
        """Number of tokens."""
        return size_of(self.frames * self.height * self.width)

    def same_tokens(self, other: Grid) -> bool:
        """Whether this is the same stretch of the same seed."""
        pairs = zip((*self.shape, self.first_frame), (*other.shape, other.first_frame), strict=True)
        return self.seed == other.seed and all(same(a, b) for a, b in pairs)

    def ends_with(self, other: Grid) -> bool:
        """Whether the last frames here are those of another grid of the same seed, by sizes that are known."""
        behind = size_of(self.first_frame + self.frames - other.first_frame)
        within = self.seed == other.seed and self.same_plane(other) and same(behind, other.frames)
        more = sympy.sympify(self.frames) - other.frames
        return self.same_tokens(other) or bool(within and more.is_nonnegative)

    def same_plane(self, other: Grid) -> bool:
        """Whether frames of both have one height and width."""
        return same(self.height, other.height) and same(self.width, other.width)

    def __str__(self) -> str:
        return "x".join(f"({size})" if isinstance(size, sympy.Add) else str(size) for size in self.shape)


@dataclass(frozen=True)
class Span:
    """A stretch of an axis: tokens of one grid, or tokens without one (text, registers).

    Attributes:
        length: number of tokens.
        grid: their grid, ``None`` when there is none.
        sources: names of the nodes where tokens without a grid came from; inputs of the program among them.
        note: why there is no grid.
        kept: whether a buffer held them before other tokens were written beside them.
    """

    length: Size
    grid: Grid | None = None
    sources: tuple[str, ...] = ()
    note: str = ""
    kept: bool = False

    def __str__(self) -> str:
        return str(self.grid) if self.grid else str(self.length)


@dataclass(frozen=True)
class TokenAxis:
    """An axis as stretches in order, for example ``text 12 | grid 4x8x8``."""

    spans: tuple[Span, ...]

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The grids on this axis, in order."""
        return tuple(span.grid for span in self.spans if span.grid)

    @property
    def grid(self) -> Grid | None:
        """The grid where there is exactly one."""
        return self.grids[0] if len(self.grids) == 1 else None

    @property
    def block(self) -> Grid | None:
        """All grids as one of more frames: those of one height and width with nothing else between them."""
        if not self.grids or not all(grid.same_plane(self.grids[0]) for grid in self.grids):
            return None
        held = [bool(span.grid) for span in self.spans]
        if not all(held[held.index(True) : len(held) - held[::-1].index(True)]):
            return None
        return self.grid or replace(
            self.grids[0],
            frames=total(grid.frames for grid in self.grids),
            origins=(None, *self.grids[0].origins[1:]),
        )

    @property
    def prefix(self) -> Size:
        """Tokens before the first grid."""
        return self._outside(self.spans)

    @property
    def suffix(self) -> Size:
        """Tokens after the last grid."""
        return self._outside(self.spans[::-1])

    @property
    def length(self) -> Size:
        """All tokens."""
        return total(span.length for span in self.spans)

    @property
    def why_not(self) -> str:
        """Why the axis holds no grid; empty when it does."""
        return "" if self.grids else next((span.note for span in self.spans if span.note), "no grid reaches it")

    def _outside(self, spans: tuple[Span, ...]) -> Size:
        lengths: list[Size] = []
        for span in spans:
            if span.grid:
                return total(lengths)
            lengths.append(span.length)
        return 0

    def __str__(self) -> str:
        return " | ".join(map(str, self.spans))
