"""Block-sparse flash attention from token order to token order, plain loads only: Ampere upward, Triton 3.4 to 3.9.

Tiles are gathered in place: a slot's token number gives its address in whichever span holds the tile, and slots that do
not exist are masked. The softmax runs online in base 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from ..skipped import Means
from ..spans import Spans, empty_output
from ..tiles import Layout, volume
from ..triton_compat import stated
from .geometry import either, load_rows, places_of, rows_of, tile_tokens


@triton.jit
def online(query, key, value, exist, total, mass, peak, factor, offset):
    """One more piece of keys ``[dims, keys]`` and values ``[keys, dims]`` in the running softmax.

    ``offset`` is added to the logits of each key, in units of the base-2 softmax.
    """
    logits = tl.dot(query, key, input_precision="ieee") * factor + offset[None, :]
    logits = tl.where(exist[None, :], logits, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(logits, 1))
    # A row that has seen no key yet has peak -inf; 0 instead keeps -inf - -inf out of the exponentials.
    safe = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    weight = tl.exp2(logits - safe[:, None])
    shrink = tl.exp2(peak - safe)
    total = total * shrink[:, None]
    total = tl.dot(weight.to(value.dtype), value, total, input_precision="ieee")
    return total, mass * shrink + tl.sum(weight, 1), new_peak


@triton.jit
def attention_kernel(
    query, out, prefix_key, context_key, current_key, prefix_value, context_value, current_value, index, count,
    mean_key, mean_value, offsets,
    query_batch, query_head, query_token, out_batch, out_head, out_token,
    pk_batch, pk_head, pk_token, ck_batch, ck_head, ck_token, uk_batch, uk_head, uk_token,
    pv_batch, pv_head, pv_token, cv_batch, cv_head, cv_token, uv_batch, uv_head, uv_token,
    heads, groups, query_tiles, prefix, context_blocks, context_frames, current_frames, height, width,
    blocks_high, blocks_wide, list_width, means, factor,
    T: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, MEANS: tl.constexpr,
):  # fmt: skip
    """``QUERIES`` slots of one query tile of one head; grid ``(query tiles * parts, batch * heads)``."""
    PARTS: tl.constexpr = (T * H * W + QUERIES - 1) // QUERIES
    PIECES: tl.constexpr = (T * H * W + KEYS - 1) // KEYS
    tile = tl.program_id(0) // PARTS
    slots = tl.program_id(0) % PARTS * QUERIES + tl.arange(0, QUERIES)
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    source = head // groups
    factor = tl.cast(factor, tl.float32)  # Inductor passes Python floats in 64 bits
    dims = tl.arange(0, DIM)
    real_dims = dims < HEAD_DIM

    tokens, exist = tile_tokens(tile, slots, current_frames, height, width, blocks_high, blocks_wide, T, H, W)
    inside = exist[:, None] & real_dims[None, :]
    queries = rows_of(query, query_batch, query_head, query_token, batch, head)
    rows = load_rows(queries, tokens, dims, inside)
    total = tl.zeros([QUERIES, DIM], tl.float32)
    mass = tl.zeros([QUERIES], tl.float32)
    peak = tl.full([QUERIES], float("-inf"), tl.float32)
    pieces = tl.arange(0, KEYS)
    zeros = tl.zeros([KEYS], tl.float32)

    keys = rows_of(prefix_key, pk_batch, pk_head, pk_token, batch, source)
    values = rows_of(prefix_value, pv_batch, pv_head, pv_token, batch, source)
    for start in range(0, prefix, KEYS):
        place = start + pieces
        here = place < prefix
        mask = here[:, None] & real_dims[None, :]
        key, value = load_rows(keys, place, dims, mask), load_rows(values, place, dims, mask)
        total, mass, peak = online(rows, tl.trans(key), value, here, total, mass, peak, factor, zeros)

    context_keys = rows_of(context_key, ck_batch, ck_head, ck_token, batch, source)
    context_values = rows_of(context_value, cv_batch, cv_head, cv_token, batch, source)
    current_keys = rows_of(current_key, uk_batch, uk_head, uk_token, batch, source)
    current_values = rows_of(current_value, uv_batch, uv_head, uv_token, batch, source)
    line = tl.program_id(1).to(tl.int64) * query_tiles + tile
    listed = tl.load(count + line)
    for step in range(0, listed * PIECES):
        block = tl.load(index + line * list_width + step // PIECES)
        from_context = block < context_blocks
        local = tl.where(from_context, block, block - context_blocks)
        frames = tl.where(from_context, context_frames, current_frames)
        place, here = tile_tokens(
            local, step % PIECES * KEYS + pieces, frames, height, width, blocks_high, blocks_wide, T, H, W
        )
        mask = here[:, None] & real_dims[None, :]
        key = load_rows(either(from_context, context_keys, current_keys), place, dims, mask)
        value = load_rows(either(from_context, context_values, current_values), place, dims, mask)
        total, mass, peak = online(rows, tl.trans(key), value, here, total, mass, peak, factor, zeros)

    if MEANS:
        first = (batch * (heads // groups) + source) * means
        for start in range(0, means, KEYS):
            place = start + pieces
            real = place < means
            offset = tl.load(offsets + line * means + place, mask=real, other=float("-inf"))
            mask = real[:, None] & real_dims[None, :]
            key = load_rows((mean_key, HEAD_DIM), first + place, dims, mask)
            value = load_rows((mean_value, HEAD_DIM), first + place, dims, mask)
            here = offset > float("-inf")
            offset = tl.where(here, offset * 1.4426950408889634, 0.0)
            total, mass, peak = online(rows, tl.trans(key), value, here, total, mass, peak, factor, offset)

    result = total / tl.where(mass == 0.0, 1.0, mass)[:, None]
    target = rows_of(out, out_batch, out_head, out_token, batch, head)
    tl.store(places_of(target, tokens, dims), result.to(out.dtype.element_ty), mask=inside)


@triton_op("lightint::portable_attend", mutates_args={})
def portable_attend(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], index: Tensor, count: Tensor, prefix: int,
    context_frames: int, current_frames: int, height: int, width: int, tile: Sequence[int], scale: float,
    means: Sequence[Tensor],
) -> Tensor:  # fmt: skip
    """Attention over three spans (prefix, context, current) with adjacent dims; a span without tokens is not read.

    ``means`` is empty or the three tensors of :class:`Means`.
    """
    layout = Layout((context_frames, current_frames), height, width, (tile[0], tile[1], tile[2]), prefix)
    out = empty_output(query)
    number = means[0].shape[2] if means else 0
    grid, sizes, options = attention_arguments(
        query, out, [*keys, *values], layout, index.shape[3], scale, means=number
    )
    stand_ins = means or (query, query, query)
    arguments = (query, out, *keys, *values, index, count, *stand_ins)
    wrap_triton(attention_kernel)[grid](*arguments, *sizes, **options, **stated())
    return out


def attention_arguments(
    query: Tensor, out: Tensor, spans: Sequence[Tensor], layout: Layout, list_width: int, scale: float, *, means: int
) -> tuple[tuple[int, int], list[Any], dict[str, Any]]:
    """Grid, sizes and options of the launch; ``spans`` are three of keys, then three of values, ``means`` how many."""
    batch, heads, _, head_dim = query.shape
    slots = volume(layout.tile)
    queries = min(128, max(16, triton.next_power_of_2(slots)))
    sizes = [
        *[tensor.stride(i) for tensor in (query, out, *spans) for i in range(3)],
        heads, heads // spans[2].shape[1], layout.query_tiles, layout.prefix, layout.context_blocks, *layout.frames,
        layout.height, layout.width, layout.blocks_high, layout.blocks_wide, list_width, means,
        scale * 1.4426950408889634,  # log2(e): the softmax runs in base 2
    ]  # fmt: skip
    options = {
        "T": layout.tile[0], "H": layout.tile[1], "W": layout.tile[2],
        "HEAD_DIM": head_dim, "DIM": max(16, triton.next_power_of_2(head_dim)),
        "QUERIES": queries, "KEYS": min(64, queries), "MEANS": means > 0,
        "num_warps": 8 if queries == 128 and head_dim > 64 else 4, "num_stages": 3,
    }  # fmt: skip
    return (layout.query_tiles * triton.cdiv(slots, queries), batch * heads), sizes, options


def attend(
    query: Tensor,
    keys: Spans,
    values: Spans,
    index: Tensor,
    count: Tensor,
    layout: Layout,
    scale: float,
    means: Means | None = None,
) -> Tensor:
    """Same contract as :func:`reference.attend`."""
    result: Tensor = torch.ops.lightint.portable_attend(
        adjacent(query),
        [adjacent(key) for key in keys.filled],
        [adjacent(value) for value in values.filled],
        index,
        count,
        layout.prefix,
        *layout.frames,
        layout.height,
        layout.width,
        layout.tile,
        scale,
        [] if means is None else list(means),
    )
    return result


def adjacent(tensor: Tensor) -> Tensor:
    """The tensor with its last axis adjacent in memory, copied where it is not."""
    return tensor if tensor.stride(3) == 1 else tensor.contiguous()
