"""The sm_90 block-sparse attention kernel: one producer warp, two consumer warpgroups, no copies around it.

A program owns one query tile of one head. Its producer warp fetches whole (frames, height, width) tiles of K and V from
their natural token order by five-dimensional TMA boxes, so nothing is permuted, padded or concatenated in memory. Two
warpgroups take 64 query rows each; in each of them the next block's ``Q K^T`` and the current block's ``P V`` are in
flight while the softmax runs (the schedule of FlashAttention-3, Shah et al. 2024). The running maximum moves only when
a row would grow by more than 2**8, and a warp none of whose rows moved skips rescaling its sums (FlashAttention-4).
Tokens that do not exist (ragged tiles, the tail of the prefix) are set to minus infinity before the softmax; only
blocks that have some pay for it.

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

from .softmax import LIMIT, faded, folded_sum, weigh, weigh_below

CONSUMERS = gl.constexpr(2)
# Later versions of Triton renamed the two; the kernel compiles there too.
_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
_store = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global
_INTEGERS = (
    "heads", "key_heads", "list_width", "places", "prefix_tokens", "prefix_blocks", "context_blocks", "context_rows",
    "context_frames", "current_frames", "height", "width", "high", "wide",
)  # fmt: skip


@gluon.jit
def _divide(number, inverse):
    # Exact for 0 <= number < 2**21: number + 0.5 is further from a multiple than the rounding of one product.
    return ((number.to(gl.float32) + 0.5) * inverse).to(gl.int32)


@gluon.jit
def _position(block, high, wide):
    line = _divide(block, 1.0 / wide.to(gl.float32))
    row = _divide(line, 1.0 / high.to(gl.float32))
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


@gluon.constexpr_function
def _one_layout(warps=1):
    return gl.BlockedLayout([1], [32], [warps], [0])


@gluon.jit
def _one(cell):
    # The number in a shared cell of one element, the same in every thread.
    return gl.max(cell.load(_one_layout(gl.num_warps())), 0)


@gluon.jit
def _missing_code(slot, block, row, y, x, extents, BT: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr):
    # 0 for a whole block; else how many of its tokens, frames, lines and columns exist, a byte each.
    prefix_tokens, prefix_blocks, context_blocks, context_rows, context_frames, current_frames, height, width = extents
    BN: gl.constexpr = BT * BH * BW
    tokens = prefix_tokens - slot * BN
    frames = gl.where(block < context_blocks, context_frames - row * BT, current_frames - (row - context_rows) * BT)
    lines = height - y * BH
    columns = width - x * BW
    code = BN | gl.minimum(frames, BT) << 8 | gl.minimum(lines, BH) << 16 | gl.minimum(columns, BW) << 24
    code = gl.where((frames < BT) | (lines < BH) | (columns < BW), code, 0)
    prefix_code = gl.where(tokens < BN, tokens | BT << 8 | BH << 16 | BW << 24, 0)
    return gl.where(slot < prefix_blocks, prefix_code, code)


@gluon.jit
def _without_missing(scores, code, BH: gl.constexpr, BW: gl.constexpr):
    place = gl.arange(0, scores.shape[1], gl.SliceLayout(0, scores.type.layout))
    tokens, frames, lines, columns = code & 255, (code >> 8) & 255, (code >> 16) & 255, (code >> 24) & 255
    exists = (place < tokens) & (place // (BH * BW) < frames) & (place // BW % BH < lines) & (place % BW < columns)
    return gl.where(exists[None, :], scores, float("-inf"))


@gluon.jit
def _fetch(
    sources, first: gl.constexpr, slot, block, row, y, x, full, target, extents, places, batch, head, heads,
    HEAD_DIM: gl.constexpr, BT: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr,
):  # fmt: skip
    # One block of K (first = 2) or V (first = 3) from the prefix, the context or the current frames.
    prefix, context, current = sources
    _, prefix_blocks, context_blocks, context_rows, _, _, _, _ = extents
    mbarrier.expect(full, current.block_type.nbytes)
    if slot < prefix_blocks:
        outer, inner = _ends(places, first, batch, head, heads, HEAD_DIM)
        rows = target.reshape((1, BT * BH * BW, current.block_type.shape[4]))
        _load(prefix, [outer, slot * (BT * BH * BW), inner], full, rows)
    elif block < context_blocks:
        outer, inner = _ends(places, first + 2, batch, head, heads, HEAD_DIM)
        _load(context, [outer, row * BT, y * BH, x * BW, inner], full, target)
    else:
        outer, inner = _ends(places, first + 4, batch, head, heads, HEAD_DIM)
        frame = (row - context_rows) * BT
        _load(current, [outer, frame, y * BH, x * BW, inner], full, target)


@gluon.jit
def _stream(
    keys, values, tiles, barriers, list_ptr, base, blocks, extents, high, wide, places, batch, head, heads,
    HEAD_DIM: gl.constexpr, BT: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    # One pass over the list; ``base`` blocks went through the buffers before. Step i fetches K of block i and V of
    # block i - 1: K leads, because it is needed one block earlier.
    _, key_tile, value_tile, missing, _ = tiles
    _, key_full, key_empty, value_full, value_empty, _ = barriers
    prefix_blocks = extents[1]
    previous = 0
    block = _listed(list_ptr, 0, prefix_blocks, blocks)
    for i in range(0, blocks + 1):
        following = _listed(list_ptr, i + 1, prefix_blocks, blocks)
        if i < blocks:
            stage = (base + i) % STAGES
            row, y, x = _position(block, high, wide)
            code = _missing_code(i, block, row, y, x, extents, BT, BH, BW)
            mbarrier.wait(key_empty.index(stage), (((base + i) // STAGES) & 1) ^ 1)
            # Stored before the arrival that expects the bytes, by the same warp: visible to whoever waits for K.
            missing.index(stage).store(gl.full([1], code, gl.int32, _one_layout()))
            _fetch(
                keys, 2, i, block, row, y, x, key_full.index(stage), key_tile.index(stage), extents, places, batch,
                head, heads, HEAD_DIM, BT, BH, BW,
            )  # fmt: skip
        if i > 0:
            stage = (base + i - 1) % STAGES
            row, y, x = _position(previous, high, wide)
            mbarrier.wait(value_empty.index(stage), (((base + i - 1) // STAGES) & 1) ^ 1)
            _fetch(
                values, 3, i - 1, previous, row, y, x, value_full.index(stage), value_tile.index(stage), extents,
                places, batch, head, heads, HEAD_DIM, BT, BH, BW,
            )  # fmt: skip
        previous = block
        block = following


@gluon.jit
def _again(verdict, judged):
    # Whether a half of the tile asked for the exact pass; every warp of the program decides alike.
    mbarrier.wait(judged.index(0), 0)
    return (_one(verdict.index(0)) | _one(verdict.index(1))) != 0


@gluon.jit
def _produce(
    query, keys, values, tiles, barriers, list_ptr, blocks, extents, high, wide,
    places, batch, head, heads, key_heads, frame, line, column,
    HEAD_DIM: gl.constexpr, BT: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr, STAGES: gl.constexpr,
    EXACT: gl.constexpr,
):  # fmt: skip
    query_tile, _, _, _, verdict = tiles
    query_full, _, _, _, _, judged = barriers
    key_head = head // (heads // key_heads)
    outer, inner = _ends(places, 0, batch, head, heads, HEAD_DIM)
    if blocks > 0:
        for half in gl.static_range(CONSUMERS):
            mbarrier.expect(query_full.index(half), query.block_type.nbytes)
            corner = [outer, frame + half * (BT // CONSUMERS), line, column, inner]
            _load(query, corner, query_full.index(half), query_tile.index(half))
        _stream(
            keys, values, tiles, barriers, list_ptr, 0, blocks, extents, high, wide, places, batch, key_head, key_heads,
            HEAD_DIM, BT, BH, BW, STAGES,
        )  # fmt: skip
        if not EXACT:  # noqa: SIM102  decided while compiling, unlike the next
            if _again(verdict, judged):
                _stream(
                    keys, values, tiles, barriers, list_ptr, blocks, blocks, extents, high, wide, places, batch,
                    key_head, key_heads, HEAD_DIM, BT, BH, BW, STAGES,
                )  # fmt: skip


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
def _attend(
    query, tiles, barriers, base, blocks, scale, D: gl.constexpr, dtype: gl.constexpr,
    BT: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr, STAGES: gl.constexpr, EXACT: gl.constexpr,
):  # fmt: skip
    # One pass over the list: sums of weighted values, row sums of weights.
    _, key_tile, value_tile, missing, _ = tiles
    _, key_full, key_empty, value_full, value_empty, _ = barriers
    BN: gl.constexpr = BT * BH * BW
    BM: gl.constexpr = BN // CONSUMERS
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    output_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    weight_layout: gl.constexpr = gl.DotOperandLayout(0, output_layout, 2)
    total = gl.zeros([BM, D], gl.float32, output_layout)
    stage = base % STAGES
    mbarrier.wait(key_full.index(stage), (base // STAGES) & 1)
    started = _scores(query, key_tile.index(stage).reshape((BN, D)), BM, BN, score_layout)
    code = _one(missing.index(stage))
    scores = warpgroup_mma_wait(0, deps=(started,))
    mbarrier.arrive(key_empty.index(stage), count=1)
    if code != 0:
        scores = _without_missing(scores, code, BH, BW)
    peak = gl.full([BM], float("-inf"), gl.float32, gl.SliceLayout(1, score_layout))
    norm = folded_sum(gl.zeros([BM, BN], gl.float32, score_layout))
    operand, fade, peak, norm = weigh(scores, peak, norm, scale, dtype, weight_layout)
    for i in range(1, blocks):
        stage = (base + i) % STAGES
        last = (base + i - 1) % STAGES
        mbarrier.wait(key_full.index(stage), ((base + i) // STAGES) & 1)
        started = _scores(query, key_tile.index(stage).reshape((BN, D)), BM, BN, score_layout)
        code = _one(missing.index(stage))
        mbarrier.wait(value_full.index(last), ((base + i - 1) // STAGES) & 1)
        adding = warpgroup_mma(operand, value_tile.index(last).reshape((BN, D)), total, is_async=True)
        scores = warpgroup_mma_wait(1, deps=(started,))
        mbarrier.arrive(key_empty.index(stage), count=1)
        # The softmax stands in both branches: the assembler moves the wait below ahead of anything in its own
        # block, and the exponentials are to run while P V is in flight.
        if code == 0:
            weights, fade, peak, norm = _weigh(scores, peak, norm, scale, dtype, weight_layout, EXACT)
        else:
            scores = _without_missing(scores, code, BH, BW)
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
    output, tiles, barriers, blocks, scale, outer, inner, frame, line, column,
    HALF: gl.constexpr, BT: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr, STAGES: gl.constexpr,
    EXACT: gl.constexpr,
):  # fmt: skip
    query_tile, _, _, _, verdict = tiles
    query_full, _, _, _, _, judged = barriers
    D: gl.constexpr = output.block_type.shape[4]
    BM: gl.constexpr = BT * BH * BW // CONSUMERS
    dtype: gl.constexpr = output.dtype
    output_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    tile = query_tile.index(HALF)
    query = tile.reshape((BM, D))
    result = gl.zeros([BM, D], dtype, output_layout)
    if blocks > 0:
        mbarrier.wait(query_full.index(HALF), 0)
        total, norm = _attend(query, tiles, barriers, 0, blocks, scale, D, dtype, BT, BH, BW, STAGES, EXACT)
        if not EXACT:
            excess = gl.max(gl.where(norm < LIMIT, 0, 1), 0)
            verdict.index(HALF).store(gl.full([1], excess, gl.int32, _one_layout(gl.num_warps())))
            mbarrier.arrive(judged.index(0), count=1)
            if _again(verdict, judged):
                total, norm = _attend(query, tiles, barriers, blocks, blocks, scale, D, dtype, BT, BH, BW, STAGES, True)
        result = (total / norm[:, None]).to(dtype)
    query.store(result)
    fence_async_shared()
    _store(output, [outer, frame + HALF * (BT // CONSUMERS), line, column, inner], tile)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=_INTEGERS)
def block_sparse_attention(
    query, output, prefix_key, prefix_value, context_key, context_value, current_key, current_value,
    index_ptr, count_ptr, scale, heads, key_heads, list_width, places,
    prefix_tokens, prefix_blocks, context_blocks, context_rows, context_frames, current_frames, height, width,
    high, wide,
    HEAD_DIM: gl.constexpr, BT: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr, STAGES: gl.constexpr,
    EXACT: gl.constexpr,
):  # fmt: skip
    """One query tile of one head; grid ``(query tiles, batch * heads)``, so that one head's K and V stay in L2.

    The first eight arguments are tensor descriptors (see :mod:`.launch`); ``places`` says where their
    heads lie (see ``_ends``). ``scale`` includes log2(e).
    """
    D: gl.constexpr = query.block_type.shape[4]
    FIRST: gl.constexpr = 0
    SECOND: gl.constexpr = 1
    tile = gl.program_id(0)
    batch = gl.program_id(1) // heads
    head = gl.program_id(1) % heads
    query_tile = gl.allocate_shared_memory(query.dtype, [CONSUMERS, 1, BT // CONSUMERS, BH, BW, D], query.layout)
    key_tile = gl.allocate_shared_memory(query.dtype, [STAGES, 1, BT, BH, BW, D], query.layout)
    value_tile = gl.allocate_shared_memory(query.dtype, [STAGES, 1, BT, BH, BW, D], query.layout)
    missing = gl.allocate_shared_memory(gl.int32, [STAGES, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
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
    blocks = prefix_blocks + gl.load(count_ptr + list_row)
    frame = tile // (high * wide) * BT
    line = tile // wide % high * BH
    column = tile % wide * BW
    outer, inner = _ends(places, 1, batch, head, heads, HEAD_DIM)
    tiles = (query_tile, key_tile, value_tile, missing, verdict)
    barriers = (query_full, key_full, key_empty, value_full, value_empty, judged)
    extents = (
        prefix_tokens, prefix_blocks, context_blocks, context_rows, context_frames, current_frames, height, width,
    )  # fmt: skip
    keys = (prefix_key, context_key, current_key)
    values = (prefix_value, context_value, current_value)
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    output, tiles, barriers, blocks, scale, outer, inner, frame, line, column,
                    FIRST, BT, BH, BW, STAGES, EXACT,
                ),
            ),
            (
                _consume,
                (
                    output, tiles, barriers, blocks, scale, outer, inner, frame, line, column,
                    SECOND, BT, BH, BW, STAGES, EXACT,
                ),
            ),
            (
                _produce,
                (
                    query, keys, values, tiles, barriers, list_ptr, blocks, extents, high, wide,
                    places, batch, head, heads, key_heads, frame, line, column, HEAD_DIM, BT, BH, BW, STAGES, EXACT,
                ),
            ),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
