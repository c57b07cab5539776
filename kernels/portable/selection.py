"""Block lists in two launches: scores of pooled queries and keys, then one program per query tile that picks and sorts.

The k-th largest score of a row is found by building its bit pattern from the top (a count per bit), so nothing is
sorted, nothing leaves the registers and no size depends on the data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from .. import reference
from ..skipped import Selection
from ..tiles import Layout, largest_deviation
from ..triton_compat import stated
from .geometry import matrix_offsets, part_places, tile_size

MAX_BLOCKS = 16384
"""Key blocks that one row can hold in registers; beyond it selection runs in plain torch."""

_SCORE_TILE = 32


@triton.jit
def score_kernel(
    query_pool, context_pool, current_pool, scores,
    heads, groups, query_tiles, context_blocks, scale, largest,
    HEAD_DIM: tl.constexpr, PIECE: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """``[EDGE, EDGE]`` scores, token counts left out; grid ``(query edges, key edges, batch * heads)``.

    Of contiguous pools, whose rows are means of HEAD_DIM channels and a spread. ``largest`` is the deviation at which
    the gain by spread turns from a parabola into its tangent.
    """
    pair = tl.program_id(2).to(tl.int64)
    source = pair // heads * (heads // groups) + pair % heads // groups
    rows = tl.program_id(0) * EDGE + tl.arange(0, EDGE)
    blocks = tl.program_id(1) * EDGE + tl.arange(0, EDGE)
    key_blocks = context_blocks + query_tiles
    from_context = blocks < context_blocks
    context = context_pool + (source * context_blocks + blocks) * (HEAD_DIM + 1)
    current = current_pool + (source * query_tiles + blocks - context_blocks) * (HEAD_DIM + 1)
    keys = tl.where(from_context, context, current)
    queries = query_pool + pair * query_tiles * (HEAD_DIM + 1)
    real_rows, real_blocks = rows < query_tiles, blocks < key_blocks
    total = tl.zeros([EDGE, EDGE], tl.float32)
    square = HEAD_DIM * tl.load(queries + rows * (HEAD_DIM + 1) + HEAD_DIM, mask=real_rows, other=0.0)
    for start in range(0, HEAD_DIM, PIECE):
        dims = start + tl.arange(0, PIECE)
        query = tl.load(queries + matrix_offsets(rows, dims, HEAD_DIM + 1), mask=real_rows[:, None], other=0.0)
        key = tl.load(keys[None, :] + dims[:, None], mask=real_blocks[None, :], other=0.0)
        total = tl.dot(query, key, total, input_precision="tf32x3")
        square += tl.sum(query * query, 1)
    spread = tl.load(keys + HEAD_DIM, mask=real_blocks, other=0.0)
    # Inductor passes Python floats in 64 bits.
    scale, largest = tl.cast(scale, tl.float32), tl.cast(largest, tl.float32)
    deviation = tl.abs(scale) * tl.sqrt(square)[:, None] * tl.sqrt(spread)[None, :]
    gain = tl.where(deviation <= largest, deviation * deviation * 0.5, largest * (deviation - 0.5 * largest))
    place = scores + (pair * query_tiles + rows)[:, None] * key_blocks + blocks[None, :]
    tl.store(place, total * scale + gain, mask=real_rows[:, None] & real_blocks[None, :])


@triton.jit
def _ordered(score):
    """Unsigned integers that sort like the floats."""
    bits = score.to(tl.uint32, bitcast=True)
    return tl.where(bits >= 0x80000000, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def _threshold(order, weight, target):
    """Largest pattern such that the weights of all entries at or above it still reach ``target``."""
    found = tl.full([1], 0, tl.uint32)
    bit = tl.full([1], 0x80000000, tl.uint32)
    for _ in range(32):
        candidate = found | bit
        reached = tl.sum(tl.where(order >= candidate, weight, 0), 0) >= target
        found = tl.where(reached, candidate, found)
        bit = bit >> 1
    return found


@triton.jit
def _covering(order, mass, coverage):
    """How many of the largest entries hold ``coverage`` of the mass."""
    edge = _threshold(order, mass, coverage)
    above, tied = order > edge, order == edge
    missing = coverage - tl.sum(tl.where(above, mass, 0.0), 0)
    each = tl.maximum(tl.max(tl.where(tied, mass, 0.0), 0), 1e-30)
    return tl.sum(above.to(tl.int32), 0) + tl.minimum(tl.ceil(missing / each), 1e6).to(tl.int32)


@triton.jit
def _forced(own, blocks, blocks_high, blocks_wide, first_protected_row, neighbours):
    """Blocks near the query tile's own block or of a protected row."""
    row_blocks = blocks_high * blocks_wide
    distance = tl.abs(own // row_blocks - blocks // row_blocks)
    distance += tl.abs(own // blocks_wide % blocks_high - blocks // blocks_wide % blocks_high)
    distance += tl.abs(own % blocks_wide - blocks % blocks_wide)
    return (distance <= neighbours) | (blocks >= first_protected_row * row_blocks)


@triton.jit
def select_kernel(
    scores, index, count, offsets,
    query_tiles, context_blocks, context_frames, current_frames, height, width,
    blocks_high, blocks_wide, first_protected_row, neighbours, budget, list_width, context_means, means, coverage,
    T: tl.constexpr, H: tl.constexpr, W: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    BLOCKS: tl.constexpr, COVER: tl.constexpr, OFFSETS: tl.constexpr,
):  # fmt: skip
    """The list of one query tile of one head; grid ``(query tiles, batch * heads)``.

    With ``OFFSETS`` also the offsets of :class:`Means`.
    """
    line = tl.program_id(1).to(tl.int64) * query_tiles + tl.program_id(0)
    key_blocks = context_blocks + query_tiles
    blocks = tl.arange(0, BLOCKS)
    real = blocks < key_blocks
    local = tl.where(blocks < context_blocks, blocks, blocks - context_blocks)
    frames = tl.where(blocks < context_blocks, context_frames, current_frames)
    size = tile_size(local, frames, height, width, blocks_high, blocks_wide, T, H, W)
    tokens = tl.log(size.to(tl.float32))
    score = tl.load(scores + line * key_blocks + blocks, mask=real, other=0.0) + tokens
    own = context_blocks + tl.program_id(0)
    forced = real & _forced(own, blocks, blocks_high, blocks_wide, first_protected_row, neighbours)
    order = tl.where(forced, 0xFFFFFFFF, tl.where(real, _ordered(score), 0)).to(tl.uint32)

    least = tl.sum(forced.to(tl.int32), 0)
    number = tl.maximum(least, budget)
    if COVER:
        highest = tl.max(tl.where(real, score, -3.0e38), 0)
        mass = tl.where(real, tl.exp(score - highest), 0.0)
        covering = _covering(order, mass / tl.sum(mass, 0), tl.cast(coverage, tl.float32))
        number = tl.maximum(tl.minimum(covering, number), least)

    edge = _threshold(order, tl.full([BLOCKS], 1, tl.int32), number)
    above, tied = order > edge, real & (order == edge)
    room = number - tl.sum(above.to(tl.int32), 0)
    keep = real & (above | (tied & (tl.cumsum(tied.to(tl.int32), 0) <= room)))
    place = tl.cumsum(keep.to(tl.int32), 0) - 1
    start = index + line * list_width
    tl.store(start + place, blocks, mask=keep)
    tl.store(start + blocks, tl.zeros([BLOCKS], tl.int32), mask=(blocks >= number) & (blocks < list_width))
    tl.store(count + line, number)
    if OFFSETS:
        first = offsets + line * means + tl.where(blocks < context_blocks, 0, context_means)
        for part in tl.static_range(PT * PH * PW):
            place, size = part_places(local, part, frames, height, width, blocks_high, blocks_wide, T, H, W, PT, PH, PW)
            logs = tl.log(tl.maximum(size, 1).to(tl.float32))
            tl.store(first + place, tl.where(keep, float("-inf"), logs), mask=real & (size > 0))


@triton_op("lightint::portable_select", mutates_args={})
def portable_select(
    query_pool: Tensor, context_pool: Tensor, current_pool: Tensor, context_frames: int, current_frames: int,
    height: int, width: int, tile: Sequence[int], first_protected_row: int, neighbours: int, budget: int,
    list_width: int, coverage: float, scale: float, finer: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Lists and offsets from contiguous float32 pools; ``context_pool`` is not read when there are no context frames.

    ``finer`` is the tile of the parts that have offsets; where it is empty, the third result is not to be read.
    """
    batch, heads, query_tiles, head_dim = (*query_pool.shape[:3], query_pool.shape[3] - 1)
    layout = Layout((context_frames, current_frames), height, width, (tile[0], tile[1], tile[2]))
    index = query_pool.new_empty((batch, heads, query_tiles, list_width), dtype=torch.int32)
    count = query_pool.new_empty((batch, heads, query_tiles), dtype=torch.int32)
    scores = query_pool.new_empty((batch, heads, query_tiles, layout.key_blocks))
    grid, sizes, options = score_arguments(batch, heads, current_pool.shape[1], head_dim, layout, scale)
    wrap_triton(score_kernel)[grid](query_pool, context_pool, current_pool, scores, *sizes, **options, **stated())
    parts = dataclasses.replace(layout, tile=(finer[0], finer[1], finer[2])) if finer else None
    offsets = scores.new_empty((batch, heads, query_tiles, 1 if parts is None else parts.key_blocks))
    grid, sizes, options = select_arguments(
        batch, heads, layout, first_protected_row, neighbours, budget, list_width, coverage, finer=parts
    )
    wrap_triton(select_kernel)[grid](scores, index, count, offsets, *sizes, **options, **stated())
    return index, count, offsets


def score_arguments(
    batch: int, heads: int, key_heads: int, head_dim: int, layout: Layout, scale: float
) -> tuple[tuple[int, ...], list[Any], dict[str, Any]]:
    """Grid, sizes and options of the first launch."""
    edges = (triton.cdiv(layout.query_tiles, _SCORE_TILE), triton.cdiv(layout.key_blocks, _SCORE_TILE), batch * heads)
    largest = largest_deviation(layout.tile)
    sizes = [heads, heads // key_heads, layout.query_tiles, layout.context_blocks, scale, largest]
    return edges, sizes, {"HEAD_DIM": head_dim, "PIECE": 16, "EDGE": _SCORE_TILE, "num_warps": 2}


def select_arguments(
    batch: int, heads: int, layout: Layout, first_protected_row: int, neighbours: int, budget: int,
    list_width: int, coverage: float, *, finer: Layout | None,
) -> tuple[tuple[int, ...], list[Any], dict[str, Any]]:  # fmt: skip
    """Grid, sizes and options of the second launch, which makes offsets for the parts of a ``finer`` layout."""
    blocks = triton.next_power_of_2(int(layout.key_blocks))
    parts = layout if finer is None else finer
    sizes = [
        layout.query_tiles, layout.context_blocks, *layout.frames, layout.height, layout.width, layout.blocks_high,
        layout.blocks_wide, first_protected_row, neighbours, budget, list_width, parts.context_blocks,
        parts.key_blocks, coverage,
    ]  # fmt: skip
    options = {
        **_cuts(layout, parts), "BLOCKS": blocks, "COVER": coverage < 1.0, "OFFSETS": finer is not None,
        "num_warps": 4 if blocks <= 1024 else 8,
    }  # fmt: skip
    return (layout.query_tiles, batch * heads), sizes, options


def _cuts(layout: Layout, finer: Layout) -> dict[str, int]:
    """A tile and into how many parts each of its axes is cut."""
    cuts = [whole // part for whole, part in zip(layout.tile, finer.tile, strict=True)]
    return dict(zip(("T", "H", "W", "PT", "PH", "PW"), (*layout.tile, *cuts), strict=True))


def policy_numbers(
    layout: Layout,
    density: float,
    coverage: float | None,
    protect_frames: int,
    neighbours: int,
    context_density: float | None,
) -> tuple[int, int, int, int, float]:
    """What :func:`select_arguments` takes after the layout: protected row, neighbours, budget, width, coverage."""
    return (
        layout.first_protected_row(protect_frames),
        neighbours,
        layout.budget(density, context_density),
        layout.list_width(density, protect_frames, neighbours, context_density),
        1.0 if coverage is None else coverage,
    )


def select_blocks(
    query_pool: Tensor,
    key_pools: Sequence[Tensor],
    layout: Layout,
    *,
    density: float,
    coverage: float | None,
    protect_frames: int,
    neighbours: int,
    scale: float,
    context_density: float | None = None,
    finer: Layout | None = None,
) -> Selection:
    """Same contract as :func:`reference.select_blocks`; no host synchronisation up to :data:`MAX_BLOCKS` blocks."""
    if layout.key_blocks > MAX_BLOCKS or (query_pool.shape[3] - 1) % 16:
        return reference.select_blocks(
            query_pool,
            key_pools,
            layout,
            density=density,
            coverage=coverage,
            protect_frames=protect_frames,
            neighbours=neighbours,
            scale=scale,
            context_density=context_density,
            finer=finer,
        )
    index, count, logs = torch.ops.lightint.portable_select(
        query_pool.contiguous(),
        key_pools[0].contiguous(),
        key_pools[-1].contiguous(),
        *layout.frames,
        layout.height,
        layout.width,
        layout.tile,
        *policy_numbers(layout, density, coverage, protect_frames, neighbours, context_density),
        scale,
        [] if finer is None else finer.tile,
    )
    return Selection(index, count, None if finer is None else logs)
