"""Attention sites and block lists for the kernel tests: small, ragged on every axis, reproducible."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightint_compile.kernels.tiles import Layout


@dataclass(frozen=True)
class Site:
    """One attention site: grids, prefix, tile and head counts."""

    query_grid: tuple[int, int, int]
    key_grid: tuple[int, int, int]
    tile: tuple[int, int, int]
    prefix: int = 0
    heads: int = 2
    key_heads: int = 2
    head_dim: int = 64
    batch: int = 1

    @property
    def layout(self) -> Layout:
        return Layout.of(self.query_grid, self.key_grid, self.tile, self.prefix)

    @property
    def grids(self) -> dict[str, object]:
        return {
            "query_grid": self.query_grid,
            "key_grid": self.key_grid,
            "prefix": self.prefix,
            "tile": self.tile,
        }

    def tensors(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)

        def draw(heads: int, tokens: int) -> Tensor:
            shape = (self.batch, heads, tokens, self.head_dim)
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

        keys = self.layout.key_tokens
        return draw(self.heads, self.layout.current_tokens), draw(self.key_heads, keys), draw(self.key_heads, keys)


SITES = {
    "aligned": Site((4, 8, 8), (8, 8, 8), (2, 4, 4)),
    "ragged": Site((3, 5, 7), (8, 5, 7), (2, 4, 4), prefix=5, heads=4, key_heads=2),
    "prefill": Site((5, 6, 10), (5, 6, 10), (4, 8, 4), prefix=70),
    "one-tile": Site((1, 3, 3), (1, 3, 3), (4, 4, 8), batch=2),
    "odd-tile": Site((3, 6, 5), (5, 6, 5), (1, 3, 5), prefix=1, head_dim=96),
    "wide-tile": Site((4, 9, 9), (6, 9, 9), (4, 8, 8), heads=1, key_heads=1, head_dim=128),
}


def random_lists(site: Site, kind: str, device: str = "cpu", seed: int = 0) -> tuple[Tensor, Tensor]:
    """Lists of a stated kind (none, one, two, all, mixed, permuted, duplicate), different for every row and head."""
    generator = torch.Generator().manual_seed(seed)
    blocks = site.layout.key_blocks
    rows = (site.batch, site.heads, site.layout.query_tiles)
    index = torch.rand(*rows, blocks, generator=generator).argsort(-1)
    fixed = {"none": 0, "one": 1, "two": 2, "all": blocks}
    if kind in fixed:
        count = torch.full(rows, min(fixed[kind], blocks))
    else:
        count = torch.randint(0, blocks + 1, rows, generator=generator)
    if kind == "duplicate":
        index = torch.randint(0, blocks, (*rows, blocks), generator=generator)
    elif kind != "permuted":
        listed = torch.arange(blocks) < count[..., None]
        index = torch.where(listed, index, blocks).sort(-1).values
    # What stands after the list must never be read as a block.
    index = torch.where(torch.arange(blocks) < count[..., None], index, 2**31 - 1)
    return index.to(device, torch.int32).contiguous(), count.to(device, torch.int32)
