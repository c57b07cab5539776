"""Textures: a pattern of three colours on a lattice of 24 x 24 texels, and the colours themselves.

All patterns are made of large shapes, so that a small model can learn to draw them; what tells places apart is which
pattern stands where and in which colours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .hashing import below

TEXELS = 24
"""Texels along a side of a face, which is one scene unit."""


def pattern_table() -> Tensor:
    """Colour numbers 0, 1, 2 [patterns, TEXELS, TEXELS] (row from the top, column), uint8."""
    row, column = torch.meshgrid(torch.arange(TEXELS), torch.arange(TEXELS), indexing="ij")
    return torch.stack([each.to(torch.uint8) for each in (*_regular(row, column), *_figures(row, column))])


WALLS = tuple(range(16))
"""Patterns of walls."""

GROUNDS = (0, 4, 5, 6, 7)
"""Patterns of floors and ceilings: the quiet ones."""


def _regular(row: Tensor, column: Tensor) -> list[Tensor]:
    """Plain, stripes, bands, checks, tiles, bricks, slants: patterns 0 to 8."""
    zero = torch.zeros_like(row)
    shifted = column + 6 * ((row // 6) % 2)
    mortar = (row % 6 == 0) | (shifted % 12 == 0)
    return [
        zero,
        (column // 3) % 2,
        (column // 6) % 2,
        (row // 6) % 2,
        (row // 12 + column // 12) % 2,
        (row // 6 + column // 6) % 2,
        ((row % 12 < 1) | (column % 12 < 1)).long(),
        ((row < 2) | (row > 21) | (column < 2) | (column > 21)).long(),
        torch.where(mortar, 2, (shifted // 12 + row // 6) % 2),
    ]


def _figures(row: Tensor, column: Tensor) -> list[Tensor]:
    """Panel, poster, disc, diamond, wainscot, slants, cross: patterns 9 to 15."""
    across, down = 2 * column - (TEXELS - 1), 2 * row - (TEXELS - 1)
    inside = (across.abs() < 16) & (down.abs() < 18)
    picture = torch.where((across.abs() < 11) & (down.abs() < 13), 2, 1)
    disc = across * across + down * down
    return [
        torch.where(inside, 1, 0),
        torch.where(inside, picture, 0),
        torch.where(disc < 64, 2, (disc < 280).long()),
        torch.where(across.abs() + down.abs() < 10, 2, (across.abs() + down.abs() < 20).long()),
        torch.where(row > 15, 1, torch.where(row > 13, 2, 0)),
        ((row + column) // 6) % 2,
        ((across.abs() < 5) | (down.abs() < 5)).long(),
    ]


def colours(seeds: Tensor, *keys: int | Tensor) -> Tensor:
    """Three colours each [..., 3], packed as red * 65536 + green * 256 + blue, int64: two that differ, an accent."""
    hue = below(1536, seeds, *keys, 1)
    turn = 384 + below(768, seeds, *keys, 2)
    return torch.stack(
        [
            _packed(hue, 80 + below(150, seeds, *keys, 3), 150 + below(100, seeds, *keys, 4)),
            _packed((hue + turn) % 1536, 60 + below(170, seeds, *keys, 5), 70 + below(180, seeds, *keys, 6)),
            _packed((hue + 2 * turn) % 1536, 120 + below(130, seeds, *keys, 7), 120 + below(130, seeds, *keys, 8)),
        ],
        dim=-1,
    )


def pale(packed: Tensor) -> Tensor:
    """Colours half way to a light grey: floors and ceilings stay quiet."""
    return ((packed >> 1) & 0x7F7F7F) + 0x505050


def _packed(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Integer hue (of 1536), saturation and value (of 255) to a packed colour."""
    region, part = hue // 256, hue % 256
    low = value * (255 - saturation) // 255
    falling = value * (255 - saturation * part // 255) // 255
    rising = value * (255 - saturation * (255 - part) // 255) // 255
    order = torch.stack([value, falling, low, low, rising, value], dim=-1)
    red, green, blue = (order.gather(-1, ((region + shift) % 6)[..., None])[..., 0] for shift in (0, 4, 2))
    return (red << 16) + (green << 8) + blue


def unpacked(packed: Tensor) -> Tensor:
    """Packed colours [...] as red, green, blue [..., 3] in [0, 1], float32."""
    return torch.stack([(packed >> 16) & 255, (packed >> 8) & 255, packed & 255], dim=-1).float() / 255.0
