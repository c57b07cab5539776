"""The maze: rooms joined by corridors on a grid of cells, with a style for every face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .hashing import below, draw
from .textures import GROUNDS, WALLS, colours, pale

CELLS = 16
"""Cells along a side of a maze; a cell is one scene unit wide and high, and the outermost ring is solid."""

ROOMS = 8
FACES = 6
"""Faces of a cell: four of a wall, towards -x, +x, -z, +z, then the floor and the ceiling of a free cell."""

FLOOR, CEILING = 4, 5

_NEIGHBOURS = ((0, -1), (0, 1), (-1, 0), (1, 0))
"""(z, x) from a wall to the cell that its face looks at."""


@dataclass(frozen=True)
class Maze:
    """One or more mazes; `x` right, `y` down, `z` forward, cell (i, j) is `i <= z < i + 1`, `j <= x < j + 1`.

    `seeds` [mazes] int64; `walls` [mazes, CELLS, CELLS] bool, by z and x; `patterns` [mazes, CELLS, CELLS, FACES]
    uint8; `colours` [mazes, CELLS, CELLS, FACES, 3] int32, packed. Floors are at `y = 0.5`, ceilings at -0.5.
    """

    seeds: Tensor
    walls: Tensor
    patterns: Tensor
    colours: Tensor

    @classmethod
    def from_seed(cls, seed: int, device: torch.device | str = "cpu") -> Maze:
        """The maze of a seed in [0, 2^31): the same on every device and in every version of torch."""
        return cls.from_seeds([seed], device)

    @classmethod
    def from_seeds(cls, seeds: Sequence[int] | Tensor, device: torch.device | str = "cpu") -> Maze:
        """The mazes of several seeds, to be rendered together."""
        rows = torch.as_tensor(seeds, dtype=torch.int64).to(device)
        regions = _regions(rows)
        patterns, packed = _styles(rows, regions)
        return cls(rows, regions < 0, patterns.to(torch.uint8), packed.to(torch.int32))

    def __len__(self) -> int:
        return self.seeds.shape[0]

    def __getitem__(self, index: int | slice) -> Maze:
        rows = slice(index, index + 1) if isinstance(index, int) else index
        return Maze(self.seeds[rows], self.walls[rows], self.patterns[rows], self.colours[rows])

    def to(self, device: torch.device | str) -> Maze:
        """The same on another device."""
        moved = (self.seeds, self.walls, self.patterns, self.colours)
        return Maze(*(each.to(device) for each in moved))

    def is_clear(self, centres: Tensor, margin: float) -> Tensor:
        """Whether a square of half width `margin` (below 0.5) around centres [mazes, ..., 2] (x, z) touches no wall."""
        clear = torch.ones(centres.shape[:-1], dtype=torch.bool, device=centres.device)
        index = torch.arange(len(self), device=centres.device).view(-1, *[1] * (centres.ndim - 2))
        for x in (-margin, margin):
            for z in (-margin, margin):
                column = (centres[..., 0] + x).floor().long().clamp(0, CELLS - 1)
                row = (centres[..., 1] + z).floor().long().clamp(0, CELLS - 1)
                clear &= ~self.walls[index, row, column]
        return clear


def _regions(seeds: Tensor) -> Tensor:
    """[mazes, CELLS, CELLS]: -1 in walls, else the number of the room, or of the corridor as ROOMS + its number."""
    regions = torch.full((seeds.shape[0], CELLS, CELLS), -1, dtype=torch.int64, device=seeds.device)
    z, x = (each.to(seeds.device)[None] for each in torch.meshgrid(*[torch.arange(CELLS)] * 2, indexing="ij"))
    rooms = [_room(seeds, number) for number in range(ROOMS)]
    for number, room in enumerate(rooms):
        into = _corridor(seeds, number, room, rooms[(number + 1) % ROOMS], z, x)
        regions = torch.where(into & (regions < 0), ROOMS + number, regions)
    for number, (top, left, height, width) in enumerate(rooms):
        inside = (z >= top) & (z < top + height) & (x >= left) & (x < left + width)
        regions = torch.where(inside, number, regions)
    return regions


def _room(seeds: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First row and column, height and width of a room, each [mazes, 1, 1]."""
    height, width = (2 + below(3, seeds, 11, number, side) for side in (0, 1))
    top, left = (1 + draw(seeds, 12, number, side) % (CELLS - 1 - size) for side, size in ((0, height), (1, width)))
    return tuple(each[:, None, None] for each in (top, left, height, width))  # type: ignore[return-value]


def _corridor(
    seeds: Tensor, number: int, start: tuple[Tensor, ...], end: tuple[Tensor, ...], z: Tensor, x: Tensor
) -> Tensor:
    """Cells [mazes, CELLS, CELLS] of an L-shaped corridor from the middle of one room to that of another."""
    (z0, x0), (z1, x1) = ((room[0] + room[2] // 2, room[1] + room[3] // 2) for room in (start, end))
    along_x_first = below(2, seeds, 13, number)[:, None, None] == 0
    corner_z, corner_x = torch.where(along_x_first, z0, z1), torch.where(along_x_first, x1, x0)
    in_row = (z == corner_z) & (x >= torch.minimum(x0, x1)) & (x <= torch.maximum(x0, x1))
    in_column = (x == corner_x) & (z >= torch.minimum(z0, z1)) & (z <= torch.maximum(z0, z1))
    return in_row | in_column


def _styles(seeds: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """Patterns [mazes, CELLS, CELLS, FACES] and packed colours [..., 3]: half of the walls as their room."""
    count, device = seeds.shape[0], seeds.device
    cell = torch.arange(CELLS * CELLS, device=device).view(1, CELLS, CELLS)
    patterns, packed = [], []
    for face in range(FACES):
        ground = face in (FLOOR, CEILING)
        room = regions if ground else _looked_at(regions, face)
        alone = below(4, seeds[:, None, None], 21, cell, face) < (1 if ground else 2)
        key = torch.where(alone, 64 + cell, room + 1)
        kinds = torch.tensor(GROUNDS if ground else WALLS, device=device)
        kind = 22 + face if ground else 22
        chosen = draw(seeds[:, None, None], kind, key, torch.where(alone, face, 0)) % len(kinds)
        colour = colours(seeds[:, None, None], kind + 8, key, torch.where(alone, face, 0))
        patterns.append(kinds[chosen].expand(count, CELLS, CELLS))
        packed.append(pale(colour) if ground else colour)
    return torch.stack(patterns, dim=-1), torch.stack(packed, dim=-2)


def _looked_at(regions: Tensor, face: int) -> Tensor:
    """The region of the cell that a wall's face looks at; -1 beyond the edge."""
    down, right = _NEIGHBOURS[face]
    moved = torch.roll(regions, (-down, -right), dims=(1, 2))
    return moved
