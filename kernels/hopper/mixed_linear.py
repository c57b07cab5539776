"""The sm_90 product of a sum of bfloat16 matrices with a bfloat16 weight, as exact as one in float32.

Tensor cores cut their sums off, and a long chain of such sums is biased. So each block of 64 features gets fresh sums,
smallest part first, and these are added to a running total by ordinary float32 additions.

One producer warp fetches blocks by TMA into a ring of stages. Two consumer warpgroups take 64 rows each and meet only
at the ring's barriers: while one adds, the tensor cores work for the other. Two that start together would also add
together, so the second one starts when one more block has arrived. Programs are persistent: the producer fetches the
next tile's blocks while this tile is stored.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .. import triton_compat
from ..launching import ALIGNMENT

CONSUMERS = gl.constexpr(2)
ROWS = gl.constexpr(64)
"""Rows of a consumer's tile."""
WIDTH = gl.constexpr(128)
"""Columns of a tile."""
DEPTH = gl.constexpr(64)
"""Features of a block: what the tensor cores sum up."""
STRIP = gl.constexpr(8)
"""Rows of tiles that programs share before they go on to the next: the parts and the weight stay in the second-level
cache."""
_load, _ = triton_compat.tile_copies()

_SHARED_BYTES = 232448 - 1024
"""What a program may have, less what barriers and captured arguments take."""
_MOST_STAGES = 8
_REGISTERS = 168


@gluon.jit
def _place(tile, high, wide):
    # Row and column of a tile: in a strip column by column.
    strip = tile // (STRIP * wide)
    inside = tile - strip * (STRIP * wide)
    height = gl.minimum(high - strip * STRIP, STRIP)
    column = inside // height
    return strip * STRIP + inside - column * height, column


@gluon.jit
def _produce(sources, rings, barriers, extents, PARTS: gl.constexpr):
    first, second, third, weight = sources
    part_tile, weight_tile = rings
    full, empty = barriers
    blocks, high, wide = extents
    STAGES: gl.constexpr = full.shape[0]
    BYTES: gl.constexpr = PARTS * CONSUMERS * first.block_type.nbytes + weight.block_type.nbytes
    stage = 0
    phase = 1
    for tile in range(gl.program_id(0), high * wide, gl.num_programs(0)):
        place, column = _place(tile, high, wide)
        for block in range(blocks):
            mbarrier.wait(empty.index(stage), phase)
            ready = full.index(stage)
            mbarrier.expect(ready, BYTES)
            _load(weight, [column * WIDTH, block * DEPTH], ready, weight_tile.index(stage))
            for half in gl.static_range(CONSUMERS):
                slot = (stage * CONSUMERS + half) * PARTS
                at = [(place * CONSUMERS + half) * ROWS, block * DEPTH]
                if PARTS > 2:
                    _load(third, at, ready, part_tile.index(slot + 2))
                if PARTS > 1:
                    _load(second, at, ready, part_tile.index(slot + 1))
                _load(first, at, ready, part_tile.index(slot))
            stage += 1
            if stage == STAGES:
                stage = 0
                phase ^= 1


@gluon.jit
def _sums(rings, barriers, stage, phase, old, HALF: gl.constexpr, PARTS: gl.constexpr):
    # The sums of one block. ``old`` lends its registers: zeros in their place would be written while products of the
    # other consumer run, and the assembler would put them in a row.
    part_tile, weight_tile = rings
    full, empty = barriers
    mbarrier.wait(full.index(stage), phase)
    started = warpgroup_mma_init(old)
    weight = weight_tile.index(stage).permute((1, 0))
    for i in gl.static_range(PARTS):
        part = part_tile.index((stage * CONSUMERS + HALF) * PARTS + (PARTS - 1 - i))
        started = warpgroup_mma(part, weight, started, use_acc=i > 0, is_async=True)
    sums = warpgroup_mma_wait(0, deps=(started,))
    mbarrier.arrive(empty.index(stage), count=1)
    return sums


@gluon.jit
def _store(total, target, row, line, HAS_BIAS: gl.constexpr):
    # Straight from registers: four lanes write 32 consecutive bytes of a row.
    output, bias, rows, columns = target
    down = gl.arange(0, ROWS, gl.SliceLayout(1, total.type.layout))
    across = gl.arange(0, WIDTH, gl.SliceLayout(0, total.type.layout))
    inside = line + across < columns
    if HAS_BIAS:
        total += gl.load(bias + line + across, mask=inside, other=0.0)[None, :]
    corner = output + row.to(gl.int64) * columns + line
    mask = (row + down < rows)[:, None] & inside[None, :]
    gl.store(corner + down[:, None] * columns + across[None, :], total, mask=mask)


@gluon.jit
def _consume(
    target, rings, barriers, extents, HALF: gl.constexpr, PARTS: gl.constexpr, HAS_BIAS: gl.constexpr
):  # fmt: skip
    blocks, high, wide = extents
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    STAGES: gl.constexpr = barriers[0].shape[0]
    stage = 0
    phase = 0
    if HALF == 1:
        # The second stage is filled for the first time without any consumer's doing, where there are two blocks.
        mbarrier.wait(barriers[0].index(1), 0, pred=blocks > 1)
    for tile in range(gl.program_id(0), high * wide, gl.num_programs(0)):
        place, column = _place(tile, high, wide)
        total = gl.zeros([ROWS, WIDTH], gl.float32, layout)
        sums = total
        for _ in range(blocks):
            sums = _sums(rings, barriers, stage, phase, sums, HALF, PARTS)
            total += sums
            stage += 1
            wraps = stage == STAGES
            stage = gl.where(wraps, 0, stage)
            phase = gl.where(wraps, phase ^ 1, phase)
        _store(total, target, (place * CONSUMERS + HALF) * ROWS, column * WIDTH, HAS_BIAS)


@gluon.jit(do_not_specialize=("rows", "blocks", "high", "wide"))
def parts_kernel(
    first, second, third, weight, output, bias, rows, columns, blocks, high, wide,
    PARTS: gl.constexpr, STAGES: gl.constexpr, HAS_BIAS: gl.constexpr,
):  # fmt: skip
    """Tiles of 128 x 128, ``high * wide`` of them; the grid is as many programs as one likes.

    The first four arguments are tensor descriptors; parts past PARTS are not read, nor is a bias without HAS_BIAS.
    ``blocks`` of DEPTH features cover a row, past whose end TMA gives zeros.
    """
    FIRST: gl.constexpr = 0
    SECOND: gl.constexpr = 1
    part_tile = gl.allocate_shared_memory(first.dtype, [STAGES * CONSUMERS * PARTS, ROWS, DEPTH], first.layout)
    weight_tile = gl.allocate_shared_memory(weight.dtype, [STAGES, WIDTH, DEPTH], weight.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=CONSUMERS)
    fence_async_shared()
    target = (output, bias, rows, columns)
    rings = (part_tile, weight_tile)
    barriers = (full, empty)
    extents = (blocks, high, wide)
    gl.warp_specialize(
        [
            (_consume, (target, rings, barriers, extents, FIRST, PARTS, HAS_BIAS)),
            (_consume, (target, rings, barriers, extents, SECOND, PARTS, HAS_BIAS)),
            (_produce, ((first, second, third, weight), rings, barriers, extents, PARTS)),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


def fits(matrices: Sequence[Tensor]) -> bool:
    """Whether TMA reads these matrices: rows one behind the other, which start at multiples of 16 bytes.

    Rows of an expanded tensor share memory, for which descriptors are not defined.
    """
    return all(
        each.stride(1) == 1
        and each.stride(0) >= each.shape[1]
        and each.stride(0) * each.element_size() % ALIGNMENT == 0
        and not each.data_ptr() % ALIGNMENT
        for each in matrices
    )


def linear_of_parts(parts: Sequence[Tensor], weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Fill ``out`` [rows, columns] float32, contiguous, of matrices that :func:`fits`."""
    (rows, features), columns = parts[0].shape, weight.shape[0]
    high, wide = triton.cdiv(rows, CONSUMERS.value * ROWS.value), triton.cdiv(columns, WIDTH.value)
    sources = [_descriptor(part, ROWS.value) for part in parts]
    sources += [sources[0]] * (3 - len(parts))
    extents = triton.cdiv(features, DEPTH.value), high, wide
    programs = min(high * wide, _multiprocessors(weight.device))
    parts_kernel[(programs,)](
        *sources, _descriptor(weight, WIDTH.value), out, out if bias is None else bias, rows, columns, *extents,
        PARTS=len(parts), STAGES=_stages(len(parts)), HAS_BIAS=bias is not None, num_warps=4, maxnreg=_REGISTERS,
        **triton_compat.OPTIONS,
    )  # fmt: skip


def _stages(parts: int) -> int:
    """As many as fit."""
    block = 2 * DEPTH.value * (parts * CONSUMERS.value * ROWS.value + WIDTH.value)
    return min(_SHARED_BYTES // block, _MOST_STAGES)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def _descriptor(matrix: Tensor, rows: int) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(matrix, [rows, DEPTH.value], _shared())


@functools.cache
def _shared() -> Any:
    return gl.NVMMASharedLayout(swizzle_byte_width=2 * DEPTH.value, element_bitwidth=16, rank=2)
