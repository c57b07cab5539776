"""Tile geometry of ragged (frames, height, width) grids: counts, token maps, protection, how many blocks are kept.

Everything here is integer arithmetic that also holds for symbolic sizes; the meaning of the numbers is stated in
:mod:`lightint_compile.kernels.ops`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor

_DENSITY_STEPS = 1_000_000


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums run."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def ceil_div(a: int, b: int) -> int:
    """Smallest integer not below ``a / b`` for positive ``b``; works on symbolic sizes."""
    return (a + b - 1) // b


def tile_counts(grid: Sequence[int], tile: Sequence[int]) -> tuple[int, int, int]:
    """Tiles along (frames, height, width), ragged ones counted."""
    return (ceil_div(grid[0], tile[0]), ceil_div(grid[1], tile[1]), ceil_div(grid[2], tile[2]))


def volume(extent: Sequence[int]) -> int:
    """Product of three extents."""
    return extent[0] * extent[1] * extent[2]


@dataclass(frozen=True)
class Layout:
    """The block grid of one attention site: context and current frames tiled separately (see ``ops``).

    Attributes:
        frames: (context frames, current frames).
        height, width: tokens of a frame.
        tile: (t, h, w) tokens.
        prefix: text tokens in front of the visual keys.
    """

    frames: tuple[int, int]
    height: int
    width: int
    tile: tuple[int, int, int]
    prefix: int = 0

    @staticmethod
    def of(query_grid: Sequence[int], key_grid: Sequence[int], tile: Sequence[int], prefix: int = 0) -> Layout:
        """The layout of grids that were checked already."""
        frames = (key_grid[0] - query_grid[0], query_grid[0])
        return Layout(frames, key_grid[1], key_grid[2], (tile[0], tile[1], tile[2]), prefix)

    @property
    def context_grid(self) -> tuple[int, int, int]:
        """Grid of the context frames; zero frames where there is no context."""
        return (self.frames[0], self.height, self.width)

    @property
    def current_grid(self) -> tuple[int, int, int]:
        """Grid of the current frames, which is also the query grid."""
        return (self.frames[1], self.height, self.width)

    @property
    def blocks_high(self) -> int:
        """Tiles along the height."""
        return ceil_div(self.height, self.tile[1])

    @property
    def blocks_wide(self) -> int:
        """Tiles along the width."""
        return ceil_div(self.width, self.tile[2])

    @property
    def row_blocks(self) -> int:
        """Tiles of one tile row (all that share their frames)."""
        return self.blocks_high * self.blocks_wide

    @property
    def context_rows(self) -> int:
        """Tile rows of the context frames."""
        return ceil_div(self.frames[0], self.tile[0])

    @property
    def current_rows(self) -> int:
        """Tile rows of the current frames."""
        return ceil_div(self.frames[1], self.tile[0])

    @property
    def context_blocks(self) -> int:
        """Key tiles of the context; block numbers below this are context."""
        return self.context_rows * self.row_blocks

    @property
    def query_tiles(self) -> int:
        """Query tiles, which is also the number of current key tiles."""
        return self.current_rows * self.row_blocks

    @property
    def key_blocks(self) -> int:
        """All visual key tiles."""
        return self.context_blocks + self.query_tiles

    @property
    def context_tokens(self) -> int:
        """Visual tokens of the context."""
        return volume(self.context_grid)

    @property
    def current_tokens(self) -> int:
        """Visual tokens of the current frames."""
        return volume(self.current_grid)

    @property
    def key_tokens(self) -> int:
        """Length of the whole key axis, prefix included."""
        return self.prefix + self.context_tokens + self.current_tokens

    def finer(self, parts: int) -> Layout:
        """The same tokens in tiles that are each one of ``parts`` equal parts of a tile of this one.

        Raises:
            ValueError: the tile cannot be halved as often.
        """
        return dataclasses.replace(self, tile=part_of(self.tile, parts))

    def first_protected_row(self, protect_frames: int) -> int:
        """First tile row that holds one of the latest ``protect_frames`` frames; every later row is protected too."""
        if protect_frames <= 0:
            return self.context_rows + self.current_rows
        if protect_frames <= self.frames[1]:
            return self.context_rows + (self.frames[1] - protect_frames) // self.tile[0]
        return cast(int, torch.sym_max(self.frames[0] + self.frames[1] - protect_frames, 0)) // self.tile[0]

    def budget(self, density: float, context_density: float | None = None) -> int:
        """Blocks kept for one query tile, in integers so that symbolic sizes agree.

        ``floor(density * key_blocks)``, as the published method counts; with ``context_density`` that of the current
        blocks and ``floor(context_density * context blocks)`` more.
        """
        if context_density is None:
            return _share(self.key_blocks, density)
        return _share(self.query_tiles, density) + _share(self.context_blocks, context_density)

    def list_width(
        self, density: float, protect_frames: int, neighbours: int, context_density: float | None = None
    ) -> int:
        """Upper bound of a row's list: the budget, or everything forced where that is more."""
        protected = self.context_rows + self.current_rows - self.first_protected_row(protect_frames)
        forced = protected * self.row_blocks + ball_size(neighbours)
        needed = torch.sym_max(self.budget(density, context_density), forced)
        return cast(int, torch.sym_min(self.key_blocks, needed))

    def keeps_all(
        self,
        density: float,
        protect_frames: int,
        neighbours: int,
        context_density: float | None = None,
        coverage: float | None = None,
    ) -> bool:
        """Whether every query tile keeps every block: by its budget, or because none is out of reach of what is forced.

        Of query tiles one in a corner of the last row has the farthest way, to the opposite corner of the first.
        """
        rows = self.context_rows + self.current_rows
        farthest = rows + self.blocks_high + self.blocks_wide - 3
        if self.first_protected_row(protect_frames) == 0 or farthest <= neighbours:
            return True
        within_budget = self.budget(density, context_density) >= self.key_blocks
        return within_budget and (coverage is None or coverage >= 1.0)


def _share(blocks: int, density: float) -> int:
    # A step more than the density, so that a fraction k / blocks, rounded to steps, keeps k.
    return blocks * (round(density * _DENSITY_STEPS) + 1) // _DENSITY_STEPS


def largest_deviation(tile: Sequence[int]) -> float:
    """Standard deviations by which the largest of a tile's tokens exceeds their mean, if they are normal numbers."""
    return math.sqrt(2 * math.log(volume(tile)))


def part_of(tile: tuple[int, int, int], parts: int) -> tuple[int, int, int]:
    """The tile halved along frames, height and width in turn, wherever the extent is even, until it is 1 / ``parts``.

    Raises:
        ValueError: ``parts`` is no power of two, or the extents are not even often enough.
    """
    extents, axis = list(tile), 0
    if parts < 0:
        raise ValueError(f"{parts} is negative")
    while parts > 1:
        if parts % 2 or all(extent % 2 for extent in extents):
            raise ValueError(f"a tile of {tile} has no such parts")
        if extents[axis] % 2 == 0:
            extents[axis], parts = extents[axis] // 2, parts // 2
        axis = (axis + 1) % 3
    return (extents[0], extents[1], extents[2])


def parents(layout: Layout, finer: Layout) -> Tensor:
    """The block that each tile of a finer layout is part of, int64 ``[finer.key_blocks]``."""
    row, y, x = block_positions(finer).unbind(-1)
    ratio = [whole // part for whole, part in zip(layout.tile, finer.tile, strict=True)]
    current = row >= finer.context_rows
    local = torch.where(current, row - finer.context_rows, row) // ratio[0]
    row = torch.where(current, local + layout.context_rows, local)
    return (row * layout.blocks_high + y // ratio[1]) * layout.blocks_wide + x // ratio[2]


def ball_size(radius: int) -> int:
    """Points of the 3-D integer lattice within Manhattan distance ``radius`` of one (1, 7, 25, ...)."""
    return (2 * radius + 1) * (2 * radius * radius + 2 * radius + 3) // 3


@lru_cache(maxsize=64)
def token_map(grid: tuple[int, int, int], tile: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Which token sits in which slot of which tile.

    Returns:
        tokens: int64 ``[tiles, slots]`` on the CPU, token number in the span (0 in empty slots).
        valid: bool ``[tiles, slots]``, False in the empty slots of ragged tiles.
    """
    axes = [_axis_map(size, extent) for size, extent in zip(grid, tile, strict=True)]
    (f, fv), (y, yv), (x, xv) = axes
    f, y, x = f[:, None, None, :, None, None], y[None, :, None, None, :, None], x[None, None, :, None, None, :]
    valid = fv[:, None, None, :, None, None] & yv[None, :, None, None, :, None] & xv[None, None, :, None, None, :]
    tokens = torch.where(valid, (f * grid[1] + y) * grid[2] + x, 0)
    slots = volume(tile)
    return tokens.reshape(-1, slots), valid.reshape(-1, slots)


def _axis_map(size: int, extent: int) -> tuple[Tensor, Tensor]:
    positions = torch.arange(ceil_div(size, extent) * extent).view(-1, extent)
    return positions, positions < size


def key_token_map(layout: Layout) -> tuple[Tensor, Tensor]:
    """:func:`token_map` of all visual key blocks, numbered from the first visual token (prefix not counted)."""
    current, current_valid = token_map(layout.current_grid, layout.tile)
    if layout.frames[0] == 0:
        return current, current_valid
    context, context_valid = token_map(layout.context_grid, layout.tile)
    shifted = torch.where(current_valid, current + layout.context_tokens, 0)
    return torch.cat([context, shifted]), torch.cat([context_valid, current_valid])


def valid_counts(grid: tuple[int, int, int], tile: tuple[int, int, int], device: torch.device | None = None) -> Tensor:
    """Tokens that really exist in each tile, int64 ``[tiles]``; made on ``device``, so that no copy waits for it."""
    sizes = [
        (extent - torch.arange(n, device=device) * step).clamp(max=step)
        for extent, n, step in zip(grid, tile_counts(grid, tile), tile, strict=True)
    ]
    return (sizes[0][:, None, None] * sizes[1][:, None] * sizes[2]).flatten()


def block_positions(layout: Layout) -> Tensor:
    """(row, y, x) of every visual key block, int64 ``[key_blocks, 3]``; the query tiles are the last of them."""
    rows = torch.arange(layout.context_rows + layout.current_rows)
    axes = (rows, torch.arange(layout.blocks_high), torch.arange(layout.blocks_wide))
    return torch.cartesian_prod(*axes).reshape(-1, 3)


def forced_blocks(layout: Layout, protect_frames: int, neighbours: int) -> Tensor:
    """Blocks every list must hold: latest frames and Manhattan neighbours, bool ``[query_tiles, key_blocks]``."""
    blocks = block_positions(layout)
    queries = blocks[layout.context_blocks :]
    near = (queries[:, None] - blocks[None]).abs().sum(-1) <= neighbours
    protected = blocks[:, 0] >= layout.first_protected_row(protect_frames)
    return near | protected[None]
