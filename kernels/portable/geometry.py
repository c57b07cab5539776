"""Tile arithmetic inside the kernels: which tokens a tile holds, and where they lie in memory.

Offsets are 64-bit: tokens times the stride of a ``[batch, tokens, heads, dim]`` tensor pass 2**31 at real sizes.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_tokens(tile, slots, frames, height, width, blocks_high, blocks_wide, T: tl.constexpr, H: tl.constexpr, W: tl.constexpr):  # fmt: skip  # noqa: E501
    """Token numbers of a tile's ``slots`` within their span, and which of them exist."""
    frame = tile // (blocks_high * blocks_wide) * T + slots // (H * W)
    row = tile // blocks_wide % blocks_high * H + slots // W % H
    column = tile % blocks_wide * W + slots % W
    exists = (slots < T * H * W) & (frame < frames) & (row < height) & (column < width)
    return (frame * height + row) * width + column, exists


@triton.jit
def tile_size(tile, frames, height, width, blocks_high, blocks_wide, T: tl.constexpr, H: tl.constexpr, W: tl.constexpr):
    """Number of tokens that exist in each tile, at least 1."""
    deep = tl.minimum(frames - tile // (blocks_high * blocks_wide) * T, T)
    high = tl.minimum(height - tile // blocks_wide % blocks_high * H, H)
    wide = tl.minimum(width - tile % blocks_wide * W, W)
    return tl.maximum(deep * high * wide, 1)


@triton.jit
def matrix_offsets(rows, columns, row_stride):
    """64-bit offsets of a ``[rows, columns]`` piece whose columns are adjacent."""
    return rows.to(tl.int64)[:, None] * row_stride + columns[None, :]
