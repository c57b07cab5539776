"""The sm_90 block-sparse attention kernel: one producer warp, two consumer warpgroups, no copies around it.

A program owns one query tile of one head. Its producer warp fetches whole (frames, height, width) tiles of K and V from
their natural token order by five-dimensional TMA boxes, so nothing is permuted, padded or concatenated in memory. Two
warpgroups take 64 query rows each; in each of them the next block's ``Q K^T`` and the current block's ``P V`` are in
flight while the softmax runs (the schedule of FlashAttention-3, Shah et al. 2024). Tokens that do not exist (ragged
tiles, the tail of the prefix) are set to minus infinity before the softmax; only blocks that have some pay for it.

Written against the Gluon of Triton 3.6; see :mod:`.launch` for the host side.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

CONSUMERS = gl.constexpr(2)


@gluon.jit
def _divide(number, inverse):
    # Exact for 0 <= number < 2**21: number + 0.5 is further from a multiple than the rounding of one product.
    return ((number.to(gl.float32) + 0.5) * inverse).to(gl.int32)


@gluon.jit
def _position(block, high, wide, inverse_high, inverse_wide):
    line = _divide(block, inverse_wide)
    row = _divide(line, inverse_high)
    return row, line - row * high, block - line * wide


@gluon.jit
def _ends(places, tensor: gl.constexpr, batch, head, heads, HEAD_DIM: gl.constexpr):
    # First and last coordinate of a box: heads lie inside a token's row or are folded with the batch; the batch counts
    # or is broadcast.
    inside = (places >> tensor) & 1
    batch = batch * ((places >> (tensor + 8)) & 1)
    return gl.where(inside == 1, batch, batch * heads + head), inside * head * HEAD_DIM


@gluon.jit
def _listed(list_ptr, slot, prefix_blocks, blocks):
    # Slots count prefix blocks first, then the list's entries; past the end the value is never used.
    inside = (slot >= prefix_blocks) & (slot < blocks)
    return gl.load(list_ptr + (slot - prefix_blocks), mask=inside, other=0)


@gluon.jit
def _produce(
    query, prefix_key, prefix_value, context_key, context_value, current_key, current_value,
    query_tile, key_tile, value_tile, query_full, key_full, key_empty, value_full, value_empty,
    list_ptr, blocks, prefix_blocks, context_blocks, context_rows, high, wide,
    places, batch, head, heads, key_heads, frame, line, column,
    HEAD_DIM: gl.constexpr, BT: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    BN: gl.constexpr = BT * BH * BW
    inverse_high = 1.0 / high.to(gl.float32)
    inverse_wide = 1.0 / wide.to(gl.float32)
    key_head = head // (heads // key_heads)
    query_first, query_last = _ends(places, 0, batch, head, heads, HEAD_DIM)
    prefix_key_first, prefix_key_last = _ends(places, 2, batch, key_head, key_heads, HEAD_DIM)
    prefix_value_first, prefix_value_last = _ends(places, 3, batch, key_head, key_heads, HEAD_DIM)
    context_key_first, context_key_last = _ends(places, 4, batch, key_head, key_heads, HEAD_DIM)
    context_value_first, context_value_last = _ends(places, 5, batch, key_head, key_heads, HEAD_DIM)
    current_key_first, current_key_last = _ends(places, 6, batch, key_head, key_heads, HEAD_DIM)
    current_value_first, current_value_last = _ends(places, 7, batch, key_head, key_heads, HEAD_DIM)
    if blocks > 0:
        for half in gl.static_range(CONSUMERS):
            mbarrier.expect(query_full.index(half), query.block_type.nbytes)
            tma.async_copy_global_to_shared(
                query, [query_first, frame + half * (BT // CONSUMERS), line, column, query_last],
                query_full.index(half), query_tile.index(half),
            )  # fmt: skip
    # Slot i of this loop fetches K of block i and V of block i - 1: K leads, because it is needed one block earlier.
    previous = 0
    block = _listed(list_ptr, 0, prefix_blocks, blocks)
    for i in range(0, blocks + 1):
        following = _listed(list_ptr, i + 1, prefix_blocks, blocks)
        if i < blocks:
            stage = i % STAGES
            mbarrier.wait(key_empty.index(stage), ((i // STAGES) & 1) ^ 1)
            mbarrier.expect(key_full.index(stage), current_key.block_type.nbytes)
            if i < prefix_blocks:
                tma.async_copy_global_to_shared(
                    prefix_key, [prefix_key_first, i * BN, prefix_key_last], key_full.index(stage),
                    key_tile.index(stage).reshape((1, BN, D)),
                )  # fmt: skip
            else:
                row, y, x = _position(block, high, wide, inverse_high, inverse_wide)
                if block < context_blocks:
                    tma.async_copy_global_to_shared(
                        context_key, [context_key_first, row * BT, y * BH, x * BW, context_key_last],
                        key_full.index(stage), key_tile.index(stage),
                    )  # fmt: skip
                else:
                    tma.async_copy_global_to_shared(
                        current_key, [current_key_first, (row - context_rows) * BT, y * BH, x * BW, current_key_last],
                        key_full.index(stage), key_tile.index(stage),
                    )  # fmt: skip
        if i > 0:
            j = i - 1
            stage = j % STAGES
            mbarrier.wait(value_empty.index(stage), ((j // STAGES) & 1) ^ 1)
            mbarrier.expect(value_full.index(stage), current_value.block_type.nbytes)
            if j < prefix_blocks:
                tma.async_copy_global_to_shared(
                    prefix_value, [prefix_value_first, j * BN, prefix_value_last], value_full.index(stage),
                    value_tile.index(stage).reshape((1, BN, D)),
                )  # fmt: skip
            else:
                row, y, x = _position(previous, high, wide, inverse_high, inverse_wide)
                if previous < context_blocks:
                    tma.async_copy_global_to_shared(
                        context_value, [context_value_first, row * BT, y * BH, x * BW, context_value_last],
                        value_full.index(stage), value_tile.index(stage),
                    )  # fmt: skip
                else:
                    tma.async_copy_global_to_shared(
                        current_value,
                        [current_value_first, (row - context_rows) * BT, y * BH, x * BW, current_value_last],
                        value_full.index(stage), value_tile.index(stage),
                    )  # fmt: skip
        previous = block
        block = following


@gluon.jit
def _weigh(scores, peak, norm, scale, dtype: gl.constexpr, layout: gl.constexpr):
    # One step of the online softmax: weights as an operand of P V, the factor by which earlier sums fade, new state.
    higher = gl.maximum(peak, gl.max(scores, 1))
    weights = gl.exp2(scores * scale - (higher * scale)[:, None])
    fade = gl.exp2((peak - higher) * scale)
    norm = norm * fade + gl.sum(weights, 1)
    return gl.convert_layout(weights.to(dtype), layout), fade, higher, norm


@gluon.jit
def _extent(
    slot, block, prefix_blocks, prefix_tokens, context_blocks, context_rows, context_frames, current_frames,
    height, width, high, wide, BT: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr,
):  # fmt: skip
    # How many tokens, frames, lines and columns of a block exist; whole blocks give at least the tile's.
    row, y, x = _position(block, high, wide, 1.0 / high.to(gl.float32), 1.0 / wide.to(gl.float32))
    frames = gl.where(block < context_blocks, context_frames - row * BT, current_frames - (row - context_rows) * BT)
    text = slot < prefix_blocks
    return (
        gl.where(text, prefix_tokens - slot * (BT * BH * BW), BT * BH * BW),
        gl.where(text, BT, frames), gl.where(text, BH, height - y * BH), gl.where(text, BW, width - x * BW),
    )  # fmt: skip


@gluon.jit
def _whole(tokens, frames, lines, columns, BT: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr):
    return (tokens >= BT * BH * BW) & (frames >= BT) & (lines >= BH) & (columns >= BW)


@gluon.jit
def _without_missing(scores, tokens, frames, lines, columns, BH: gl.constexpr, BW: gl.constexpr):
    layout: gl.constexpr = gl.SliceLayout(0, scores.type.layout)
    place = gl.arange(0, scores.shape[1], layout)
    exists = (place < tokens) & (place // (BH * BW) < frames) & (place // BW % BH < lines) & (place % BW < columns)
    return gl.where(exists[None, :], scores, float("-inf"))


@gluon.jit
def _consume(
    output, query_tile, key_tile, value_tile, query_full, key_full, key_empty, value_full, value_empty,
    list_ptr, blocks, prefix_blocks, prefix_tokens, context_blocks, context_rows, context_frames, current_frames,
    height, width, high, wide, scale, output_first, output_last, frame, line, column,
    HALF: gl.constexpr, BT: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    BN: gl.constexpr = BT * BH * BW
    BM: gl.constexpr = BN // CONSUMERS
    dtype: gl.constexpr = output.dtype
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    output_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    weight_layout: gl.constexpr = gl.DotOperandLayout(0, output_layout, 2)
    tile = query_tile.index(HALF)
    query = tile.reshape((BM, D))
    total = gl.zeros([BM, D], gl.float32, output_layout)
    if blocks > 0:
        block = _listed(list_ptr, 0, prefix_blocks, blocks)
        following = _listed(list_ptr, 1, prefix_blocks, blocks)
        mbarrier.wait(query_full.index(HALF), 0)
        mbarrier.wait(key_full.index(0), 0)
        started = warpgroup_mma_init(gl.zeros([BM, BN], gl.float32, score_layout))
        started = warpgroup_mma(
            query, key_tile.index(0).reshape((BN, D)).permute((1, 0)), started, use_acc=False, is_async=True
        )
        scores = warpgroup_mma_wait(0, deps=(started,))
        mbarrier.arrive(key_empty.index(0), count=1)
        tokens, frames, lines, columns = _extent(
            0, block, prefix_blocks, prefix_tokens, context_blocks, context_rows, context_frames, current_frames,
            height, width, high, wide, BT, BH, BW,
        )  # fmt: skip
        scores = _without_missing(scores, tokens, frames, lines, columns, BH, BW)
        peak = gl.full([BM], float("-inf"), gl.float32, gl.SliceLayout(1, score_layout))
        norm = gl.zeros([BM], gl.float32, gl.SliceLayout(1, score_layout))
        operand, fade, peak, norm = _weigh(scores, peak, norm, scale, dtype, weight_layout)
        for i in range(1, blocks):
            block = following
            following = _listed(list_ptr, i + 1, prefix_blocks, blocks)
            stage = i % STAGES
            last = (i - 1) % STAGES
            mbarrier.wait(key_full.index(stage), (i // STAGES) & 1)
            started = warpgroup_mma_init(gl.zeros([BM, BN], gl.float32, score_layout))
            started = warpgroup_mma(
                query, key_tile.index(stage).reshape((BN, D)).permute((1, 0)), started, use_acc=False, is_async=True
            )
            mbarrier.wait(value_full.index(last), ((i - 1) // STAGES) & 1)
            adding = warpgroup_mma(operand, value_tile.index(last).reshape((BN, D)), total, is_async=True)
            scores = warpgroup_mma_wait(1, deps=(started,))
            mbarrier.arrive(key_empty.index(stage), count=1)
            tokens, frames, lines, columns = _extent(
                i, block, prefix_blocks, prefix_tokens, context_blocks, context_rows, context_frames, current_frames,
                height, width, high, wide, BT, BH, BW,
            )  # fmt: skip
            if _whole(tokens, frames, lines, columns, BT, BH, BW):
                fresh, fade, peak, norm = _weigh(scores, peak, norm, scale, dtype, weight_layout)
            else:
                scores = _without_missing(scores, tokens, frames, lines, columns, BH, BW)
                fresh, fade, peak, norm = _weigh(scores, peak, norm, scale, dtype, weight_layout)
            total = warpgroup_mma_wait(0, deps=(adding,))
            mbarrier.arrive(value_empty.index(last), count=1)
            total = total * gl.convert_layout(fade, gl.SliceLayout(1, output_layout))[:, None]
            operand = fresh
        last = (blocks - 1) % STAGES
        mbarrier.wait(value_full.index(last), ((blocks - 1) // STAGES) & 1)
        adding = warpgroup_mma(operand, value_tile.index(last).reshape((BN, D)), total, is_async=True)
        total = warpgroup_mma_wait(0, deps=(adding,))
        total = total / gl.convert_layout(norm, gl.SliceLayout(1, output_layout))[:, None]
    query.store(total.to(dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(
        output, [output_first, frame + HALF * (BT // CONSUMERS), line, column, output_last], tile
    )
    tma.store_wait(0)


@gluon.jit
def _consume_first(
    output, query_tile, key_tile, value_tile, query_full, key_full, key_empty, value_full, value_empty,
    list_ptr, blocks, prefix_blocks, prefix_tokens, context_blocks, context_rows, context_frames, current_frames,
    height, width, high, wide, scale, output_first, output_last, frame, line, column,
    BT: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    _consume(
        output, query_tile, key_tile, value_tile, query_full, key_full, key_empty, value_full, value_empty,
        list_ptr, blocks, prefix_blocks, prefix_tokens, context_blocks, context_rows, context_frames, current_frames,
        height, width, high, wide, scale, output_first, output_last, frame, line, column,
        0, BT, BH, BW, D, STAGES,
    )  # fmt: skip


@gluon.jit
def _consume_second(
    output, query_tile, key_tile, value_tile, query_full, key_full, key_empty, value_full, value_empty,
    list_ptr, blocks, prefix_blocks, prefix_tokens, context_blocks, context_rows, context_frames, current_frames,
    height, width, high, wide, scale, output_first, output_last, frame, line, column,
    BT: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    _consume(
        output, query_tile, key_tile, value_tile, query_full, key_full, key_empty, value_full, value_empty,
        list_ptr, blocks, prefix_blocks, prefix_tokens, context_blocks, context_rows, context_frames, current_frames,
        height, width, high, wide, scale, output_first, output_last, frame, line, column,
        1, BT, BH, BW, D, STAGES,
    )  # fmt: skip


@gluon.jit(do_not_specialize=["places", "prefix_tokens", "prefix_blocks", "context_blocks", "context_frames"])
def block_sparse_attention(
    query, output, prefix_key, prefix_value, context_key, context_value, current_key, current_value,
    index_ptr, count_ptr, scale, heads, key_heads, list_width, places,
    prefix_tokens, prefix_blocks, context_blocks, context_rows, context_frames, current_frames, height, width,
    high, wide,
    HEAD_DIM: gl.constexpr, BT: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """One query tile of one head; grid ``(query tiles, batch * heads)``, so that neighbours in time share K and V in L2.

    The first eight arguments are tensor descriptors (see :mod:`.launch`); ``places`` says where their
    heads lie (see ``_ends``). ``scale`` includes log2(e).
    """
    D: gl.constexpr = query.block_type.shape[4]
    layout: gl.constexpr = query.layout
    dtype: gl.constexpr = query.dtype
    tile = gl.program_id(0)
    batch = gl.program_id(1) // heads
    head = gl.program_id(1) % heads
    output_first, output_last = _ends(places, 1, batch, head, heads, HEAD_DIM)
    query_tile = gl.allocate_shared_memory(dtype, [CONSUMERS, 1, BT // CONSUMERS, BH, BW, D], layout)
    key_tile = gl.allocate_shared_memory(dtype, [STAGES, 1, BT, BH, BW, D], layout)
    value_tile = gl.allocate_shared_memory(dtype, [STAGES, 1, BT, BH, BW, D], layout)
    query_full = gl.allocate_shared_memory(gl.int64, [CONSUMERS, 1], mbarrier.MBarrierLayout())
    key_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    key_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    value_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    value_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for half in gl.static_range(CONSUMERS):
        mbarrier.init(query_full.index(half), count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(key_full.index(stage), count=1)
        mbarrier.init(value_full.index(stage), count=1)
        mbarrier.init(key_empty.index(stage), count=CONSUMERS)
        mbarrier.init(value_empty.index(stage), count=CONSUMERS)
    fence_async_shared()

    list_row = gl.program_id(1).to(gl.int64) * gl.num_programs(0) + tile
    list_ptr = index_ptr + list_row * list_width
    blocks = prefix_blocks + gl.load(count_ptr + list_row)
    row = tile // (high * wide)
    y = tile // wide % high
    x = tile % wide
    frame = row * BT
    line = y * BH
    column = x * BW
    gl.warp_specialize(
        [
            (
                _consume_first,
                (
                    output, query_tile, key_tile, value_tile, query_full, key_full, key_empty, value_full, value_empty,
                    list_ptr, blocks, prefix_blocks, prefix_tokens, context_blocks, context_rows, context_frames,
                    current_frames, height, width, high, wide, scale,
                    output_first, output_last, frame, line, column, BT, BH, BW, D, STAGES,
                ),  # fmt: skip
            ),
            (
                _consume_second,
                (
                    output, query_tile, key_tile, value_tile, query_full, key_full, key_empty, value_full, value_empty,
                    list_ptr, blocks, prefix_blocks, prefix_tokens, context_blocks, context_rows, context_frames,
                    current_frames, height, width, high, wide, scale,
                    output_first, output_last, frame, line, column, BT, BH, BW, D, STAGES,
                ),  # fmt: skip
            ),
            (
                _produce,
                (
                    query, prefix_key, prefix_value, context_key, context_value, current_key, current_value,
                    query_tile, key_tile, value_tile, query_full, key_full, key_empty, value_full, value_empty,
                    list_ptr, blocks, prefix_blocks, context_blocks, context_rows, high, wide,
                    places, batch, head, heads, key_heads, frame, line, column, HEAD_DIM,
                    BT, BH, BW, D, STAGES,
                ),  # fmt: skip
            ),
        ],
        [4, 1],
        [240, 24],
    )
