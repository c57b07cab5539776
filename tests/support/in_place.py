"""Causal attention whose keys and values are kept in the caller's buffers, in the ways that streaming models write."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Rolling(nn.Module):
    """Blocks of a streaming model: a window of the buffer is written, a full one rolls behind its sink first.

    Args:
        size: places in a buffer.
        sink: places at its front that never roll.
    """

    def __init__(self, width: int = 16, heads: int = 2, blocks: int = 3, size: int = 24, sink: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(blocks))
        self.size, self.sink, self.width, self.heads = size, sink, width, heads

    def forward(self, x: Tensor, caches: list[dict[str, Tensor]], start: int) -> Tensor:
        for block, cache in zip(self.blocks, caches, strict=True):
            x = x + block(x, cache, start, self.size, self.sink)
        return x

    def caches(self, batch: int = 1) -> list[dict[str, Tensor]]:
        """Empty buffers [batch, size, heads, head_dim] and the place of their end, one for each block."""
        sizes = (batch, self.size, self.heads, self.width // self.heads)
        return [
            {"k": torch.zeros(sizes), "v": torch.zeros(sizes), "end": torch.zeros(1, dtype=torch.long)}
            for _ in self.blocks
        ]


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, cache: dict[str, Tensor], start: int, size: int, sink: int) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        end = start + x.shape[1]
        if end > size:
            dropped = end - size
            kept = size - sink - dropped
            for held in (cache["k"], cache["v"]):
                held[:, sink : sink + kept] = held[:, sink + dropped : sink + dropped + kept].clone()
            start, end = start - dropped, size
        cache["k"][:, start:end] = key
        cache["v"][:, start:end] = value
        cache["end"].fill_(end)
        query, key, value = (t.transpose(1, 2) for t in (query, cache["k"][:, :end], cache["v"][:, :end]))
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


def clones(caches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [{name: held.clone() for name, held in cache.items()} for cache in caches]
