"""The steps of the published attention pipeline, written again in plain Triton as a yardstick.

Light Interaction (arXiv 2605.31158) copies queries, keys and values into tile order and pools them over all slots of a
tile, zeros of ragged tiles included; picks blocks with ``topk`` and ``sort`` of PyTorch; attends with a plain
FlashAttention-2 loop over the list, without any mask; and copies the result back to token order. Its inputs are the
context and current frames concatenated, which is charged here too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightint_compile.kernels.spans import Spans
from lightint_compile.kernels.tiles import Layout, ceil_div, forced_blocks, volume

from .sites import BLOCK, Site, Tensors


@triton.jit
def _place(tile, frames, height, width, high, wide, T: tl.constexpr, H: tl.constexpr, W: tl.constexpr):
    slots = tl.arange(0, T * H * W)
    frame = tile // (high * wide) * T + slots // (H * W)
    line = tile // wide % high * H + slots // W % H
    column = tile % wide * W + slots % W
    return (frame * height + line) * width + column, (frame < frames) & (line < height) & (column < width)


@triton.jit
def _tile_kernel(
    tokens, tiles, pool, head_stride, token_stride, tiles_stride, frames, height, width, high, wide,
    T: tl.constexpr, H: tl.constexpr, W: tl.constexpr, D: tl.constexpr, POOL: tl.constexpr,
):  # fmt: skip
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    place, exists = _place(tile, frames, height, width, high, wide, T, H, W)
    dims = tl.arange(0, D)
    source = tokens + head * head_stride + place[:, None] * token_stride + dims[None, :]
    values = tl.load(source, mask=exists[:, None], other=0.0)
    target = tiles + head * tiles_stride + (tile * T * H * W + tl.arange(0, T * H * W))[:, None] * D + dims[None, :]
    tl.store(target, values)
    if POOL:
        mean = tl.sum(values.to(tl.float32), 0) / (T * H * W)
        tl.store(pool + (head * tl.num_programs(0) + tile) * D + dims, mean.to(pool.dtype.element_ty))


@triton.jit
def _untile_kernel(
    tiles, tokens, head_stride, token_stride, frames, height, width, high, wide,
    T: tl.constexpr, H: tl.constexpr, W: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    place, exists = _place(tile, frames, height, width, high, wide, T, H, W)
    dims = tl.arange(0, D)
    rows = (head * tl.num_programs(0) + tile) * T * H * W + tl.arange(0, T * H * W)
    values = tl.load(tiles + rows[:, None] * D + dims[None, :])
    target = tokens + head * head_stride + place[:, None] * token_stride + dims[None, :]
    tl.store(target, values, mask=exists[:, None])


@triton.jit
def _list_kernel(
    query, key, value, output, index, count, factor, list_width, key_tokens,
    BLOCK: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    dims, slots = tl.arange(0, D), tl.arange(0, BLOCK)
    row = head * tl.num_programs(0) + tile
    rows = (row * BLOCK + slots)[:, None] * D + dims[None, :]
    q = tl.load(query + rows)
    peak = tl.full([BLOCK], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK, D], tl.float32)
    keys = key + head * key_tokens * D + slots[None, :] * D + dims[:, None]
    values = value + head * key_tokens * D + slots[:, None] * D + dims[None, :]
    for i in range(tl.load(count + row)):
        start = tl.load(index + row * list_width + i) * BLOCK * D
        logits = tl.dot(q, tl.load(keys + start)) * factor
        higher = tl.maximum(peak, tl.max(logits, 1))
        weights = tl.exp2(logits - higher[:, None])
        fade = tl.exp2(peak - higher)
        mass = mass * fade + tl.sum(weights, 1)
        total = tl.dot(weights.to(q.dtype), tl.load(values + start), total * fade[:, None])
        peak = higher
    tl.store(output + rows, (total / mass[:, None]).to(q.dtype))


@dataclass
class Published:
    """The pipeline for one site (batch 1); :meth:`whole` runs all of it, :meth:`attend` the list kernel alone."""

    site: Site
    tensors: Tensors

    def __post_init__(self) -> None:
        layout, query = self.site.layout, self.tensors.query
        self.text_blocks = ceil_div(layout.prefix, BLOCK)
        self.blocks = self.text_blocks + layout.key_blocks
        heads, dim = self.site.heads, self.site.head_dim
        self.query_tiles = query.new_empty(heads, layout.query_tiles, BLOCK, dim)
        self.result_tiles = torch.empty_like(self.query_tiles)
        self.key_tiles, self.value_tiles = (query.new_zeros(heads, self.blocks, BLOCK, dim) for _ in range(2))
        self.query_pool = query.new_empty(heads, layout.query_tiles, dim)
        self.key_pool = query.new_empty(heads, layout.key_blocks, dim)
        self.forced = forced_blocks(layout, self.site.protect_frames, 1).to(query.device)

    def whole(self) -> Tensor:
        """Tokens in, tokens out."""
        self.prepare()
        self.lists = self.select()
        self.attend(*self.lists)
        return self._untile()

    def prepare(self) -> None:
        """Everything into tile order; means of queries and keys."""
        layout, tensors = self.site.layout, self.tensors
        self._tile(tensors.query, self.query_tiles, self.query_pool, layout.current_grid)
        grid = (sum(layout.frames), layout.height, layout.width)
        for spans, tiles, pool in (
            (tensors.keys, self.key_tiles, self.key_pool),
            (tensors.values, self.value_tiles, None),
        ):
            tiles.view(*tiles.shape[:1], -1, tiles.shape[-1])[:, : layout.prefix] = spans.prefix[0]
            self._tile(_joined(spans), tiles[:, self.text_blocks :], pool, grid)

    def select(self) -> tuple[Tensor, Tensor]:
        """Forced blocks and the best of the others, ascending, the text's in front."""
        scores = (self.query_pool @ self.key_pool.transpose(1, 2)) * self.site.scale
        chosen = (scores + self.forced * 1e6).topk(self.site.kept, -1).indices.sort(-1).values + self.text_blocks
        text = torch.arange(self.text_blocks, device=chosen.device).expand(*chosen.shape[:2], -1)
        index = torch.cat([text, chosen], -1).int()
        return index, torch.full(index.shape[:2], index.shape[2], dtype=torch.int32, device=index.device)

    def attend(self, index: Tensor, count: Tensor) -> None:
        """The list kernel over tiles that were prepared."""
        heads, tiles = index.shape[:2]
        _list_kernel[(tiles, heads)](
            self.query_tiles, self.key_tiles, self.value_tiles, self.result_tiles, index, count,
            self.site.scale * 1.4426950408889634, index.shape[2], self.blocks * BLOCK,
            BLOCK=BLOCK, D=self.site.head_dim, num_warps=8, num_stages=3,
        )  # fmt: skip

    def _tile(self, tokens: Tensor, tiles: Tensor, pool: Tensor | None, grid: tuple[int, int, int]) -> None:
        _tile_kernel[(_tiles(self.site.layout, grid[0]), self.site.heads)](
            tokens, tiles, tiles if pool is None else pool, tokens.stride(1), tokens.stride(2), tiles.stride(0),
            *grid, self.site.layout.blocks_high, self.site.layout.blocks_wide,
            *self.site.layout.tile, D=self.site.head_dim, POOL=pool is not None, num_warps=8,
        )  # fmt: skip

    def _untile(self) -> Tensor:
        layout, output = self.site.layout, torch.empty_like(self.tensors.query)
        _untile_kernel[(layout.query_tiles, self.site.heads)](
            self.result_tiles, output, output.stride(1), output.stride(2),
            *layout.current_grid, layout.blocks_high, layout.blocks_wide, *layout.tile, D=self.site.head_dim,
        )  # fmt: skip
        return output


def _joined(spans: Spans) -> Tensor:
    return torch.cat([spans.context, spans.current], 2) if spans.context.shape[2] else spans.current


def _tiles(layout: Layout, frames: int) -> int:
    return volume((ceil_div(frames, layout.tile[0]), layout.blocks_high, layout.blocks_wide))
