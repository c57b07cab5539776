"""Attention sites to measure: the two of a world model's chunk at 480p, and plain self-attention of growing length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightint_compile.kernels.spans import Spans
from lightint_compile.kernels.tiles import Layout, ceil_div, volume

BLOCK = 128
_NEIGHBOURS = 1


@dataclass(frozen=True)
class Site:
    """One attention call: its token grid and which part of the key blocks is kept.

    Attributes:
        density: kept fraction of the visual key blocks, forced ones counted; of the current ones where the context
            has a density of its own.
        protect_frames: latest frames that are always kept.
        context_density: that of the context's blocks.
    """

    name: str
    layout: Layout
    density: float
    protect_frames: int = 0
    context_density: float | None = None
    batch: int = 1
    heads: int = 16
    head_dim: int = 128

    @property
    def scale(self) -> float:
        """Factor of the logits."""
        return self.head_dim**-0.5

    @property
    def kept(self) -> int:
        """Visual key blocks kept by every query tile, as many as lists hold."""
        width = self.layout.list_width(self.density, self.protect_frames, _NEIGHBOURS, self.context_density)
        return int(width)

    @property
    def dense_flops(self) -> float:
        """Operations of attention over all keys."""
        pairs = self.layout.current_tokens * self.layout.key_tokens
        return 4.0 * self.batch * self.heads * self.head_dim * pairs

    @property
    def kept_flops(self) -> float:
        """Operations over kept blocks and the prefix, empty slots counted as the kernel computes them."""
        slots = volume(self.layout.tile)
        keys = self.kept * slots + ceil_div(self.layout.prefix, BLOCK) * BLOCK
        return 4.0 * self.batch * self.heads * self.head_dim * self.layout.query_tiles * slots * keys

    def policy(self) -> dict[str, Any]:
        """The arguments of block selection."""
        return {
            "density": self.density,
            "context_density": self.context_density,
            "coverage": None,
            "protect_frames": self.protect_frames,
            "neighbours": _NEIGHBOURS,
            "scale": self.scale,
        }


@dataclass(frozen=True)
class Tensors:
    """Inputs of a site as a model holds them: one projection each, heads side by side in memory."""

    query: Tensor
    keys: Spans
    values: Spans

    @staticmethod
    def random(site: Site, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Tensors:
        """Normal random tensors."""
        generator = torch.Generator(device=device).manual_seed(seed)

        def tokens(count: int) -> Tensor:
            shape = (site.batch, count, site.heads, site.head_dim)
            return torch.randn(shape, device=device, dtype=dtype, generator=generator).transpose(1, 2)

        layout = site.layout
        counts = (layout.prefix, layout.context_tokens, layout.current_tokens)
        keys, values = (Spans(*(tokens(count) for count in counts)) for _ in range(2))
        return Tensors(tokens(layout.current_tokens), keys, values)

    def pieces(self) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values as lists of non-empty segments."""
        keys, values = ([span for span in spans if span.shape[2]] for spans in (self.keys, self.values))
        return keys, values

    def whole(self) -> tuple[Tensor, Tensor]:
        """Keys and values concatenated: what dense attention takes."""
        key, value = (torch.cat(parts, 2) for parts in self.pieces())
        return key, value


def visual(spans: Spans, layout: Layout) -> list[tuple[Tensor, tuple[int, int, int]]]:
    """Context (if any) and current tokens with their grids: what is pooled."""
    context = [(spans.context, layout.context_grid)] if layout.frames[0] else []
    return [*context, (spans.current, layout.current_grid)]


def world_chunk() -> list[Site]:
    """A chunk at 480p, 1560 tokens a latent frame, 16 heads of 128; the budgets are those of Light Interaction."""
    tile, text = (4, 8, 4), 1985
    return [
        Site("denoise, 12 context frames", Layout((12, 4), 30, 52, tile, text), 1.0, 4, context_density=0.175),
        Site("prefill, 12 frames", Layout((0, 12), 30, 52, tile, text), 0.3),
        Site("prefill, 20 frames", Layout((0, 20), 30, 52, tile, text), 0.3),
    ]


def square(tokens: int, density: float, heads: int = 16, head_dim: int = 128) -> Site:
    """Self-attention over ``tokens`` (a power of two from 512) in whole tiles, without text."""
    exponent = int(math.log2(tokens)) - 5
    frames = 4 * 2 ** (exponent // 3 - 1)
    height = 8 * 2 ** ((exponent + 2) // 3 - 1)
    grid = (frames, height, tokens // (frames * height))
    layout = Layout((0, frames), height, grid[2], (4, 8, 4))
    return Site(f"{tokens} tokens", layout, density, heads=heads, head_dim=head_dim)
