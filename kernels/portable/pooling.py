"""Means and spreads of tiles: queries, context keys and current keys in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from lightint_compile.torch_compat import is_observed

from ..launching import Launch
from ..tiles import tile_counts, volume
from ..triton_compat import stated
from .geometry import matrix_offsets, tile_tokens


@triton.jit
def pool_kernel(
    a, b, c, a_out, b_out, c_out,
    a_batch, a_head, a_token, b_batch, b_head, b_token, c_batch, c_head, c_token,
    a_heads, b_heads, c_heads, a_frames, b_frames, c_frames, a_tiles, b_tiles, c_tiles,
    height, width, blocks_high, blocks_wide, most_heads, rows,
    T: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    SLOTS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """One tile of one head of one of three spans; grid ``(all tiles * rows,)``, ``rows`` being batch * most_heads.

    Heads come first: those of a token mostly lie side by side, and programs that run together then read whole lines.
    """
    place = tl.program_id(0) // rows
    batch = (tl.program_id(0) % rows // most_heads).to(tl.int64)
    head = tl.program_id(0) % rows % most_heads
    first, second = place < a_tiles, place < a_tiles + b_tiles
    tile = tl.where(first, place, tl.where(second, place - a_tiles, place - a_tiles - b_tiles))
    frames = tl.where(first, a_frames, tl.where(second, b_frames, c_frames))
    heads = tl.where(first, a_heads, tl.where(second, b_heads, c_heads))
    tiles = tl.where(first, a_tiles, tl.where(second, b_tiles, c_tiles))
    token_stride = tl.where(first, a_token, tl.where(second, b_token, c_token))
    base = tl.where(
        first,
        a + batch * a_batch + head * a_head,
        tl.where(second, b + batch * b_batch + head * b_head, c + batch * c_batch + head * c_head),
    )
    out = tl.where(first, a_out, tl.where(second, b_out, c_out))
    if head < heads:
        slots, dims = tl.arange(0, SLOTS), tl.arange(0, DIM)
        tokens, exist = tile_tokens(tile, slots, frames, height, width, blocks_high, blocks_wide, T, H, W)
        inside = exist[:, None] & (dims < HEAD_DIM)[None, :]
        values = tl.load(base + matrix_offsets(tokens, dims, token_stride), mask=inside, other=0.0)
        values, number = values.to(tl.float32), tl.sum(exist.to(tl.float32), 0)
        mean = tl.sum(values, 0) / number
        from_mean = tl.where(inside, values - mean[None, :], 0.0)
        spread = tl.sum(tl.sum(from_mean * from_mean, 0), 0) / (number * HEAD_DIM)
        row = out + ((batch * heads + head) * tiles + tile) * (HEAD_DIM + 1)
        tl.store(row + dims, mean, mask=dims < HEAD_DIM)
        tl.store(row + HEAD_DIM, spread)


@triton_op("lightint::portable_pool", mutates_args={})
def portable_pool(tokens: Sequence[Tensor], frames: Sequence[int], height: int, width: int, tile: Sequence[int]) -> list[Tensor]:  # fmt: skip  # noqa: E501
    """Pool up to three spans ``[batch, heads, tokens, head_dim]`` of ``frames[i]`` frames each, float32 results."""
    batch, _, _, head_dim = tokens[0].shape
    pools = [
        part.new_empty((batch, part.shape[1], tiles, head_dim + 1), dtype=torch.float32)
        for part, tiles in zip(tokens, tiles_of(frames, height, width, tile), strict=True)
    ]
    grid, sizes, options = pool_arguments(tokens, frames, height, width, tile)
    # Of one tensor that is several outputs, a functional graph would keep the last one, which is not written.
    unwritten = [pools[0].new_empty(1) for _ in range(3 - len(pools))]
    wrap_triton(pool_kernel)[grid](*thrice(tokens), *pools, *unwritten, *sizes, **options, **stated())
    return pools


def tiles_of(frames: Sequence[int], height: int, width: int, tile: Sequence[int]) -> list[int]:
    """Tiles of each span."""
    return [volume(tile_counts((count, height, width), tile)) for count in frames]


def thrice(spans: Sequence[Any]) -> list[Any]:
    """Three addresses for the kernel: the first one is a placeholder for absent spans."""
    return [*spans, *[spans[0]] * (3 - len(spans))]


def pool_arguments(
    tokens: Sequence[Tensor], frames: Sequence[int], height: int, width: int, tile: Sequence[int]
) -> tuple[tuple[int], list[Any], dict[str, Any]]:
    """Grid, sizes and options of the launch; an absent span has no frames and no tiles."""
    batch, _, _, head_dim = tokens[0].shape
    absent = [0] * (3 - len(tokens))
    tiles = tiles_of(frames, height, width, tile)
    sources = thrice(tokens)
    heads = [part.shape[1] for part in sources]
    _, high, wide = tile_counts((1, height, width), tile)
    strides = [part.stride(i) for part in sources for i in range(3)]
    rows = batch * max(heads)
    sizes = [*strides, *heads, *frames, *absent, *tiles, *absent, height, width, high, wide, max(heads), rows]
    options = {
        "T": tile[0], "H": tile[1], "W": tile[2],
        "SLOTS": triton.next_power_of_2(volume(tile)),
        "HEAD_DIM": head_dim, "DIM": triton.next_power_of_2(head_dim),
        "num_warps": 2,  # more of them leave too few loads in flight
    }  # fmt: skip
    return (sum(tiles) * rows,), sizes, options


def pool_spans(spans: Sequence[tuple[Tensor, tuple[int, int, int]]], tile: tuple[int, int, int]) -> list[Tensor]:
    """Same contract as :func:`reference.pool_spans` for at most three spans of one height and width."""
    _, height, width = spans[0][1]
    tokens = [part if part.stride(3) == 1 else part.contiguous() for part, _ in spans]
    frames = tuple(grid[0] for _, grid in spans)
    if all(type(part) in _PLAIN for part in tokens) and not is_observed():
        return _started(tokens, frames, height, width, tile)
    pools: list[Tensor] = torch.ops.lightint.portable_pool(tokens, frames, height, width, tile)
    return pools


_PLAIN = (Tensor, torch.nn.Parameter)
_bound: dict[tuple[Any, ...], tuple[Launch, list[tuple[int, ...]]]] = {}
_MOST_BOUND = 256


def _started(
    tokens: Sequence[Tensor], frames: tuple[int, ...], height: int, width: int, tile: tuple[int, int, int]
) -> list[Tensor]:
    """The same launch as that of the operator, bound to its sizes."""
    forms = [(part.shape, part.stride(), part.dtype, part.device) for part in tokens]
    key = (*forms, frames, height, width, tile)
    if key not in _bound:
        if len(_bound) >= _MOST_BOUND:
            _bound.clear()
        numbers = tiles_of(frames, height, width, tile)
        shapes = [(*part.shape[:2], number, part.shape[3] + 1) for part, number in zip(tokens, numbers, strict=True)]
        _bound[key] = Launch(pool_kernel, *pool_arguments(tokens, frames, height, width, tile)), shapes
    launch, shapes = _bound[key]
    pools = [part.new_empty(shape, dtype=torch.float32) for part, shape in zip(tokens, shapes, strict=True)]
    launch.run((*thrice(tokens), *thrice(pools)), tokens[0].get_device())
    return pools
