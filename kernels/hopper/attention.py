"""The sm_90 block-sparse attention kernel: one producer warp, two consumer warpgroups, no copies around it.

A program owns one query tile of one head. Its producer warp fetches whole (frames, height, width) tiles of K and V from
their natural token order by five-dimensional TMA boxes, so nothing is permuted, padded or concatenated in memory. Two
warpgroups take 64 query rows each; in each of them the next block's ``Q K^T`` and the current block's ``P V`` are in
flight while the softmax runs (the schedule of FlashAttention-3, Shah et al. 2024). The running maximum moves only when
a row would grow by more than 2**8, and a warp none of whose rows moved skips rescaling its sums (FlashAttention-4).
The producer hands over an offset for each score of a block that is not plain: minus infinity for tokens that do not
exist (ragged tiles, the tail of the prefix), so that only blocks that have some pay for it. Means that stand for
skipped blocks come last, 128 blocks as the rows of one tile; their offsets count the tokens of a block and leave out
those that were read.

Gluon is experimental: where its versions differ, ``triton_compat`` knows. See :mod:`.launch` for the host side.
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

from ..triton_compat import tile_copies
from .extents import Extents
from .producer import CONSUMERS, again, ends, one, one_layout, produce
from .softmax import LIMIT, faded, folded_sum, weigh, weigh_below

_, _store = tile_copies()
_INTEGERS = (
    "heads", "key_heads", "list_width", "places", "prefix_tokens", "prefix_blocks", "context_blocks", "context_rows",
    "context_frames", "current_frames", "height", "width", "high", "wide", "means", "mean_blocks",
)  # fmt: skip


@gluon.jit
def _adjusted(scores, offsets):
    # Adds -inf for padding tokens and log-counts for means.
    return scores + offsets.load(gl.SliceLayout(0, scores.type.layout))[None, :]


@gluon.jit
def _scores(query, key, BM: gl.constexpr, BN: gl.constexpr, layout: gl.constexpr):
    start = warpgroup_mma_init(gl.zeros([BM, BN], gl.float32, layout))
    return warpgroup_mma(query, key.permute((1, 0)), start, use_acc=False, is_async=True)


@gluon.jit
def _weigh(
    scores, peak, norm, scale, dtype: gl.constexpr, layout: gl.constexpr, EXACT: gl.constexpr
):  # fmt: skip
    if EXACT:
        weights, fade, peak, norm = weigh(scores, peak, norm, scale, dtype, layout)
    else:
        weights, norm = weigh_below(scores, peak, norm, scale, dtype, layout)
        fade = peak
    return weights, fade, peak, norm


@gluon.jit
def _attend(query, tiles, barriers, base, blocks, scale, EXACT: gl.constexpr):
    # One pass over the list: sums of weighted values, row sums of weights.
    _, key_tile, value_tile, plain, offset_tile, _ = tiles
    _, key_full, key_empty, value_full, value_empty, _ = barriers
    dtype: gl.constexpr = query.dtype
    STAGES: gl.constexpr = key_tile.shape[0]
    BN: gl.constexpr = key_tile.shape[2] * key_tile.shape[3] * key_tile.shape[4]
    D: gl.constexpr = key_tile.shape[5]
    BM: gl.constexpr = BN // CONSUMERS
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    output_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    weight_layout: gl.constexpr = gl.DotOperandLayout(0, output_layout, 2)
    total = gl.zeros([BM, D], gl.float32, output_layout)
    stage = base % STAGES
    mbarrier.wait(key_full.index(stage), (base // STAGES) & 1)
    started = _scores(query, key_tile.index(stage).reshape((BN, D)), BM, BN, score_layout)
    untouched = one(plain.index(stage))
    scores = warpgroup_mma_wait(0, deps=(started,))
    if untouched == 0:
        scores = _adjusted(scores, offset_tile.index(stage))
    mbarrier.arrive(key_empty.index(stage), count=1)
    peak = gl.full([BM], float("-inf"), gl.float32, gl.SliceLayout(1, score_layout))
    norm = folded_sum(gl.zeros([BM, BN], gl.float32, score_layout))
    operand, fade, peak, norm = weigh(scores, peak, norm, scale, dtype, weight_layout)
    for i in range(1, blocks):
        stage = (base + i) % STAGES
        last = (base + i - 1) % STAGES
        mbarrier.wait(key_full.index(stage), ((base + i) // STAGES) & 1)
        started = _scores(query, key_tile.index(stage).reshape((BN, D)), BM, BN, score_layout)
        untouched = one(plain.index(stage))
        mbarrier.wait(value_full.index(last), ((base + i - 1) // STAGES) & 1)
        adding = warpgroup_mma(operand, value_tile.index(last).reshape((BN, D)), total, is_async=True)
        scores = warpgroup_mma_wait(1, deps=(started,))
        # The softmax stands in both branches: the assembler moves the wait below ahead of anything in its own block,
        # and the exponentials are to run while P V is in flight. Offsets are given back with the keys: read first.
        if untouched != 0:
            mbarrier.arrive(key_empty.index(stage), count=1)
            weights, fade, peak, norm = _weigh(scores, peak, norm, scale, dtype, weight_layout, EXACT)
        else:
            scores = _adjusted(scores, offset_tile.index(stage))
            mbarrier.arrive(key_empty.index(stage), count=1)
            weights, fade, peak, norm = _weigh(scores, peak, norm, scale, dtype, weight_layout, EXACT)
        total = warpgroup_mma_wait(0, deps=(adding,))
        mbarrier.arrive(value_empty.index(last), count=1)
        if EXACT:
            total = faded(total, gl.convert_layout(fade, gl.SliceLayout(1, output_layout)))
        operand = weights
    last = (base + blocks - 1) % STAGES
    mbarrier.wait(value_full.index(last), ((base + blocks - 1) // STAGES) & 1)
    adding = warpgroup_mma(operand, value_tile.index(last).reshape((BN, D)), total, is_async=True)
    total = warpgroup_mma_wait(0, deps=(adding,))
    mbarrier.arrive(value_empty.index(last), count=1)
    return total, gl.convert_layout(gl.sum(norm, 1), gl.SliceLayout(1, output_layout))


@gluon.jit
def _consume(
    output, tiles, barriers, blocks, scale, place, corner, HALF: gl.constexpr, EXACT: gl.constexpr
):  # fmt: skip
    query_tile, _, _, _, _, verdict = tiles
    query_full, _, _, _, _, judged = barriers
    outer, inner = place
    frame, line, column = corner
    BT: gl.constexpr = output.block_type.shape[1]
    BM: gl.constexpr = BT * output.block_type.shape[2] * output.block_type.shape[3]
    D: gl.constexpr = output.block_type.shape[4]
    dtype: gl.constexpr = output.dtype
    output_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    tile = query_tile.index(HALF)
    query = tile.reshape((BM, D))
    result = gl.zeros([BM, D], dtype, output_layout)
    if blocks > 0:
        mbarrier.wait(query_full.index(HALF), 0)
        total, norm = _attend(query, tiles, barriers, 0, blocks, scale, EXACT)
        if not EXACT:
            excess = gl.max(gl.where(norm < LIMIT, 0, 1), 0)
            verdict.index(HALF).store(gl.full([1], excess, gl.int32, one_layout(gl.num_warps())))
            mbarrier.arrive(judged.index(0), count=1)
            if again(verdict, judged):
                total, norm = _attend(query, tiles, barriers, blocks, blocks, scale, True)
        result = (total / norm[:, None]).to(dtype)
    query.store(result)
    fence_async_shared()
    _store(output, [outer, frame + HALF * BT, line, column, inner], tile)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=_INTEGERS)
def block_sparse_attention(
    query, output, prefix_key, prefix_value, context_key, context_value, current_key, current_value,
    mean_key, mean_value, offset_ptr, index_ptr, count_ptr, scale, factor, heads, key_heads, list_width, places,
    prefix_tokens, prefix_blocks, context_blocks, context_rows, context_frames, current_frames, height, width,
    high, wide, means, mean_blocks,
    HEAD_DIM: gl.constexpr, STAGES: gl.constexpr, EXACT: gl.constexpr, MEANS: gl.constexpr,
):  # fmt: skip
    """One query tile of one head; grid ``(query tiles, batch * heads)``, so that one head's K and V stay in L2.

    Numbers arrive one by one and are grouped here: Triton specialises on the members of a tuple, whatever
    ``do_not_specialize`` says, and would compile again for every size that is one or a multiple of 16.

    The first ten arguments are tensor descriptors (see :mod:`.launch`); ``places`` says how the heads of the first
    eight tensors are stored (see ``ends``). ``scale`` includes log2(e), ``factor`` brings offsets of logits to unscaled
    scores.
    """
    BT: gl.constexpr = current_key.block_type.shape[1]
    BH: gl.constexpr = current_key.block_type.shape[2]
    BW: gl.constexpr = current_key.block_type.shape[3]
    D: gl.constexpr = current_key.block_type.shape[4]
    FIRST: gl.constexpr = 0
    SECOND: gl.constexpr = 1
    tile = gl.program_id(0)
    batch = gl.program_id(1) // heads
    head = gl.program_id(1) % heads
    query_tile = gl.allocate_shared_memory(query.dtype, [CONSUMERS, 1, BT // CONSUMERS, BH, BW, D], query.layout)
    key_tile = gl.allocate_shared_memory(query.dtype, [STAGES, 1, BT, BH, BW, D], query.layout)
    value_tile = gl.allocate_shared_memory(query.dtype, [STAGES, 1, BT, BH, BW, D], query.layout)
    plain = gl.allocate_shared_memory(gl.int32, [STAGES, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    offset_tile = gl.allocate_shared_memory(gl.float32, [STAGES, BT * BH * BW], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    verdict = gl.allocate_shared_memory(gl.int32, [CONSUMERS, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    query_full = gl.allocate_shared_memory(gl.int64, [CONSUMERS, 1], mbarrier.MBarrierLayout())
    key_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    key_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    value_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    value_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    judged = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    mbarrier.init(judged.index(0), count=CONSUMERS)
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
    listed = prefix_blocks + gl.load(count_ptr + list_row)
    blocks = listed + mean_blocks
    whose = (places, batch, head, heads)
    corner = (tile // (high * wide) * BT, tile // wide % high * BH, tile % wide * BW)
    tiles = (query_tile, key_tile, value_tile, plain, offset_tile, verdict)
    barriers = (query_full, key_full, key_empty, value_full, value_empty, judged)
    extents = Extents(
        prefix_tokens, prefix_blocks, context_blocks, context_rows, context_frames, current_frames, height, width,
        high, wide,
    )  # fmt: skip
    keys = (prefix_key, context_key, current_key, mean_key)
    values = (prefix_value, context_value, current_value, mean_value)
    lists = (list_ptr, (offset_ptr + list_row * means, means, factor), listed, blocks)
    place = ends(whose, 1, HEAD_DIM)
    gl.warp_specialize(
        [
            (_consume, (output, tiles, barriers, blocks, scale, place, corner, FIRST, EXACT)),
            (_consume, (output, tiles, barriers, blocks, scale, place, corner, SECOND, EXACT)),
            (
                produce,
                (
                    query, keys, values, tiles, barriers, lists, extents, whose, key_heads, corner,
                    HEAD_DIM, EXACT, MEANS,
                ),
            ),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
