"""Tile arithmetic inside the kernels: which tokens a tile holds, and where they are in memory.

Offsets are 64-bit: tokens times the stride of a ``[batch, tokens, heads, dim]`` tensor pass 2**31 at real sizes.

The tokens of one head in memory are ``rows``: a pointer to the first, and the elements from one to the next. They are a
plain tuple, made inside of a kernel: Inductor, which copies a kernel's source, knows no class of ours, and gives a
kernel no tuples as arguments.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rows_of(pointer, by_batch, by_head, by_token, batch, head):
    """The rows of a head of a ``[batch, heads, tokens, dim]`` tensor; ``batch`` is 64-bit."""
    return pointer + batch * by_batch + head.to(tl.int64) * by_head, by_token


@triton.jit
def either(condition, rows, others):
    """``rows`` where ``condition`` holds, else ``others``."""
    return tl.where(condition, rows[0], others[0]), tl.where(condition, rows[1], others[1])


@triton.jit
def places_of(rows, tokens, dims):
    """Pointers to a ``[tokens, dims]`` piece."""
    start, stride = rows
    return start + matrix_offsets(tokens, dims, stride)


@triton.jit
def load_rows(rows, tokens, dims, mask):
    """A ``[tokens, dims]`` piece, zero where ``mask`` is false."""
    return tl.load(places_of(rows, tokens, dims), mask=mask, other=0.0)


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
def part_places(
    tile, parts, frames, height, width, blocks_high, blocks_wide,
    T: tl.constexpr, H: tl.constexpr, W: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
):  # fmt: skip
    """The numbers of a tile's parts among the tiles of the finer layout of their span, and the tokens of each."""
    FT: tl.constexpr = T // PT
    FH: tl.constexpr = H // PH
    FW: tl.constexpr = W // PW
    row = tile // (blocks_high * blocks_wide) * PT + parts // (PH * PW)
    line = tile // blocks_wide % blocks_high * PH + parts // PW % PH
    column = tile % blocks_wide * PW + parts % PW
    deep = tl.minimum(tl.maximum(frames - row * FT, 0), FT)
    high = tl.minimum(tl.maximum(height - line * FH, 0), FH)
    wide = tl.minimum(tl.maximum(width - column * FW, 0), FW)
    return (row * tl.cdiv(height, FH) + line) * tl.cdiv(width, FW) + column, deep * high * wide


@triton.jit
def matrix_offsets(rows, columns, row_stride):
    """64-bit offsets of a ``[rows, columns]`` piece whose columns are adjacent."""
    return rows.to(tl.int64)[:, None] * row_stride + columns[None, :]
