"""The producer warp of the sm_90 kernel: which block comes next, where its tokens are, and the copies that fetch it."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from ..triton_compat import tile_copies

CONSUMERS = gl.constexpr(2)
_load, _ = tile_copies()


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
def ends(whose, tensor: gl.constexpr, HEAD_DIM: gl.constexpr):
    """First and last coordinate of a box of the tensor numbered ``tensor``.

    ``whose`` is (places, batch, head, heads): heads are inside of a token's row or folded with the batch; the batch
    counts or is broadcast.
    """
    places, batch, head, heads = whose
    inside = (places >> tensor) & 1
    batch = batch * ((places >> (tensor + 8)) & 1)
    return gl.where(inside == 1, batch, batch * heads + head), inside * head * HEAD_DIM


@gluon.jit
def _listed(list_ptr, slot, prefix_blocks, blocks):
    # Slots count prefix blocks first, then the list's entries, then means; beyond the list the value is never used.
    inside = (slot >= prefix_blocks) & (slot < blocks)
    return gl.load(list_ptr + (slot - prefix_blocks), mask=inside, other=0)


@gluon.constexpr_function
def one_layout(warps=1):
    """The layout of a single number that every thread holds."""
    return gl.BlockedLayout([1], [32], [warps], [0])


@gluon.jit
def one(cell):
    """The number in a shared cell of one element, the same in every thread."""
    return gl.max(cell.load(one_layout(gl.num_warps())), 0)


@gluon.jit
def _present(slot, at, extents, BT: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr):
    # How many tokens, frames, lines and columns of a block exist, as many as it has or more where all do.
    block, row, y, x = at
    BN: gl.constexpr = BT * BH * BW
    in_context = extents.context_frames - row * BT
    in_current = extents.current_frames - (row - extents.context_rows) * BT
    frames = gl.where(block < extents.context_blocks, in_context, in_current)
    text = slot < extents.prefix_blocks
    tokens = gl.where(text, extents.prefix - slot * BN, BN)
    lines = gl.where(text, BH, extents.height - y * BH)
    return tokens, gl.where(text, BT, frames), lines, gl.where(text, BW, extents.width - x * BW)


@gluon.jit
def _offsets_of(present, BT: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr):
    # Minus infinity for tokens of a block that do not exist.
    tokens, frames, lines, columns = present
    place = gl.arange(0, BT * BH * BW, one_layout())
    exists = (place < tokens) & (place // (BH * BW) < frames) & (place // BW % BH < lines) & (place % BW < columns)
    return gl.where(exists, 0.0, float("-inf"))


@gluon.jit
def _offsets_of_means(tile, offsets, BN: gl.constexpr):
    # Of one tile of means; ``offsets`` are those of the query tile, how many they are, and what makes scores of them.
    pointer, means, factor = offsets
    place = tile * BN + gl.arange(0, BN, one_layout())
    return gl.load(pointer + place, mask=place < means, other=float("-inf")) * factor


@gluon.jit
def _fetch(
    sources, first: gl.constexpr, slot, at, listed, full, target, extents, whose, HEAD_DIM: gl.constexpr,
    MEANS: gl.constexpr,
):  # fmt: skip
    # One block of K (first = 2) or V (first = 3) from the prefix, the context, the current frames or the means.
    prefix, context, current, means = sources
    block, row, y, x = at
    BT: gl.constexpr = current.block_type.shape[1]
    BH: gl.constexpr = current.block_type.shape[2]
    BW: gl.constexpr = current.block_type.shape[3]
    mbarrier.expect(full, current.block_type.nbytes)
    if slot < extents.prefix_blocks:
        outer, inner = ends(whose, first, HEAD_DIM)
        rows = target.reshape((1, BT * BH * BW, current.block_type.shape[4]))
        _load(prefix, [outer, slot * (BT * BH * BW), inner], full, rows)
    elif MEANS and slot >= listed:
        _, batch, head, heads = whose
        rows = target.reshape((1, BT * BH * BW, current.block_type.shape[4]))
        _load(means, [batch * heads + head, (slot - listed) * (BT * BH * BW), 0], full, rows)
    elif block < extents.context_blocks:
        outer, inner = ends(whose, first + 2, HEAD_DIM)
        _load(context, [outer, row * BT, y * BH, x * BW, inner], full, target)
    else:
        outer, inner = ends(whose, first + 4, HEAD_DIM)
        frame = (row - extents.context_rows) * BT
        _load(current, [outer, frame, y * BH, x * BW, inner], full, target)


@gluon.jit
def _stream(
    keys, values, tiles, barriers, lists, base, extents, whose, HEAD_DIM: gl.constexpr, MEANS: gl.constexpr
):  # fmt: skip
    # One pass over prefix and list (``listed`` slots) and means; ``base`` blocks went through the buffers before. Step
    # i fetches K of block i and V of block i - 1: K leads, because it is needed one block earlier.
    _, key_tile, value_tile, plain, offset_tile, _ = tiles
    _, key_full, key_empty, value_full, value_empty, _ = barriers
    list_ptr, offsets, listed, blocks = lists
    prefix_blocks, high, wide = extents.prefix_blocks, extents.blocks_high, extents.blocks_wide
    STAGES: gl.constexpr = key_tile.shape[0]
    BT: gl.constexpr = key_tile.shape[2]
    BH: gl.constexpr = key_tile.shape[3]
    BW: gl.constexpr = key_tile.shape[4]
    previous = 0
    block = _listed(list_ptr, 0, prefix_blocks, listed)
    for i in range(0, blocks + 1):
        following = _listed(list_ptr, i + 1, prefix_blocks, listed)
        if i < blocks:
            stage = (base + i) % STAGES
            row, y, x = _position(block, high, wide)
            at = (block, row, y, x)
            present = _present(i, at, extents, BT, BH, BW)
            tokens, frames, lines, columns = present
            whole = (tokens >= BT * BH * BW) & (frames >= BT) & (lines >= BH) & (columns >= BW) & (i < listed)
            mbarrier.wait(key_empty.index(stage), (((base + i) // STAGES) & 1) ^ 1)
            # Stored before the arrival that expects the bytes, by the same warp: visible to whoever waits for K.
            plain.index(stage).store(gl.full([1], whole.to(gl.int32), gl.int32, one_layout()))
            if i < listed:
                if not whole:
                    offset_tile.index(stage).store(_offsets_of(present, BT, BH, BW))
            elif MEANS:
                offset_tile.index(stage).store(_offsets_of_means(i - listed, offsets, BT * BH * BW))
            full, target = key_full.index(stage), key_tile.index(stage)
            _fetch(keys, 2, i, at, listed, full, target, extents, whose, HEAD_DIM, MEANS)
        if i > 0:
            stage = (base + i - 1) % STAGES
            row, y, x = _position(previous, high, wide)
            mbarrier.wait(value_empty.index(stage), (((base + i - 1) // STAGES) & 1) ^ 1)
            at = (previous, row, y, x)
            full, target = value_full.index(stage), value_tile.index(stage)
            _fetch(values, 3, i - 1, at, listed, full, target, extents, whose, HEAD_DIM, MEANS)
        previous = block
        block = following


@gluon.jit
def again(verdict, judged):
    """Whether a half of the tile asked for the exact pass; every warp of the program decides alike."""
    mbarrier.wait(judged.index(0), 0)
    return (one(verdict.index(0)) | one(verdict.index(1))) != 0


@gluon.jit
def produce(
    query, keys, values, tiles, barriers, lists, extents, whose, key_heads, corner,
    HEAD_DIM: gl.constexpr, EXACT: gl.constexpr, MEANS: gl.constexpr,
):  # fmt: skip
    """Fetch the query tile, then keys and values slot by slot; once more where the exact pass is asked for.

    ``lists`` is (list, offsets of means, slots of prefix and list, slots in all), ``corner`` the first token of the
    query tile, ``whose`` (see :func:`ends`) that of a query head.
    """
    query_tile, _, _, _, _, verdict = tiles
    query_full, _, _, _, _, judged = barriers
    places, batch, head, heads = whose
    frame, line, column = corner
    HALF: gl.constexpr = query.block_type.shape[1]
    source = (places, batch, head // (heads // key_heads), key_heads)
    outer, inner = ends(whose, 0, HEAD_DIM)
    blocks = lists[3]
    if blocks > 0:
        for half in gl.static_range(CONSUMERS):
            mbarrier.expect(query_full.index(half), query.block_type.nbytes)
            first = [outer, frame + half * HALF, line, column, inner]
            _load(query, first, query_full.index(half), query_tile.index(half))
        _stream(keys, values, tiles, barriers, lists, 0, extents, source, HEAD_DIM, MEANS)
        if not EXACT:  # noqa: SIM102  decided while compiling, unlike the next
            if again(verdict, judged):
                _stream(keys, values, tiles, barriers, lists, blocks, extents, source, HEAD_DIM, MEANS)
