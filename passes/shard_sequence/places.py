"""Where a value is cut for the ranks: on one axis, inside of some values and around others.

A cut axis is ``(plain outer)(batch ranks)(plain inner)``, in the words of the analysis of axes: the part of one rank is
what the row of one element is to a batch. Tokens are cut by frames, by rows or by columns of their grid; heads are cut
in runs.
"""

from __future__ import annotations

from enum import StrEnum

import torch.fx as fx

from lightint_compile.passes.analysis.axes.factors import Axis, Layout, batch, place_of, shared
from lightint_compile.passes.analysis.token_axis import Grid
from lightint_compile.passes.ir.fake_values import Size
from lightint_compile.passes.ir.op_arguments import sizes_of
from lightint_compile.passes.ir.sizes import product, quotient, replaced


class By(StrEnum):
    """Along which axis of the grid tokens are dealt out."""

    FRAMES = "frames"
    ROWS = "rows"
    COLUMNS = "columns"

    def of(self, grid: Grid) -> tuple[Size, Size]:
        """What lies around the axis, and its extent."""
        around = {By.FRAMES: (), By.ROWS: grid.shape[:1], By.COLUMNS: grid.shape[:2]}[self]
        return product(around), grid.shape[len(around)]


def cut_of(grid: Grid, by: By, ranks: int) -> Axis | None:
    """The axis of a grid's tokens, cut for so many ranks; ``None`` where they do not divide it."""
    outer, size = by.of(grid)
    if not isinstance(size, int) or size % ranks:
        return None
    inner = quotient(grid.tokens, product([outer, ranks]))
    known = isinstance(outer, int) or isinstance(inner, int)
    return batch(ranks, outer, inner) if inner is not None and known else None


def heads_of(size: Size, ranks: int) -> Axis | None:
    """An axis of heads, cut for so many ranks; ``None`` where they do not divide it."""
    return batch(ranks, 1, size // ranks) if isinstance(size, int) and size % ranks == 0 else None


def whole(node: fx.Node) -> Layout:
    """The layout of a value that every rank has all of."""
    return shared(sizes_of(node))


def cut(node: fx.Node, axis: int, entry: Axis) -> Layout:
    """The layout of a value that is cut on one axis."""
    return replaced(whole(node), axis, entry)


def is_cut(layout: Layout) -> bool:
    """Whether ranks have different parts of a value."""
    return place_of(layout) is not None
