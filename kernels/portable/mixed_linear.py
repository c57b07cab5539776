"""Products of a sum of bfloat16 matrices with a bfloat16 weight, as accurate as one in float32; for sm_80 and later."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from ..triton_compat import OPTIONS, stated

TILE = 128
"""Rows and columns of the result that one program computes."""

STRIP = 8
"""Tiles of rows whose programs run together, so that they find the weight in the second-level cache."""


@triton.jit
def parts_kernel(
    first, second, third, weight, bias, out, rows, columns, features, first_row, second_row, third_row, weight_row,
    TILE: tl.constexpr, STEP: tl.constexpr, STRIP: tl.constexpr, PARTS: tl.constexpr, BIAS: tl.constexpr,
    WIDTH: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One tile of ``out`` [rows, columns]; grid ``(tiles,)``. ``WHOLE``: ``features`` is a multiple of a turn's.

    What one turn sums up on the tensor cores, smallest part first, is added to the total outside of them. One part
    alone takes two steps a turn: the sum with a product that starts at zero would be made one on the tensor cores.
    """
    high, wide = tl.cdiv(rows, TILE), tl.cdiv(columns, TILE)
    strip = tl.program_id(0) // (STRIP * wide)
    deep = tl.minimum(high - strip * STRIP, STRIP)
    place = tl.program_id(0) % (STRIP * wide)
    row = (strip * STRIP + place % deep) * TILE + tl.arange(0, TILE)
    column = place // deep * TILE + tl.arange(0, TILE)
    steps = tl.arange(0, STEP)
    own_row = (row % rows).to(tl.int64)[:, None]  # rows past the end read others, and are not stored
    firsts = first + own_row * first_row + steps[None, :]
    seconds = second + own_row * second_row + steps[None, :]
    thirds = third + own_row * third_row + steps[None, :]
    weights = weight + (column % columns).to(tl.int64)[None, :] * weight_row + steps[:, None]
    total = tl.zeros([TILE, TILE], tl.float32)
    for start in range(0, features, STEP * WIDTH):
        step = tl.zeros([TILE, TILE], tl.float32)
        if PARTS == 1:
            later = _part(firsts, start + STEP, steps[None, :] < features - start - STEP, WHOLE)
            step = tl.dot(later, _part(weights, start + STEP, steps[:, None] < features - start - STEP, WHOLE), step)
        factor = _part(weights, start, steps[:, None] < features - start, WHOLE)
        there = steps[None, :] < features - start
        if PARTS > 2:
            step = tl.dot(_part(thirds, start, there, WHOLE), factor, step)
        if PARTS > 1:
            step = tl.dot(_part(seconds, start, there, WHOLE), factor, step)
        total += tl.dot(_part(firsts, start, there, WHOLE), factor, step)
    if BIAS:
        total += tl.load(bias + column % columns)[None, :]
    places = out + row.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(places, total, mask=(row < rows)[:, None] & (column < columns)[None, :])


@triton.jit
def _part(places, start, there, WHOLE: tl.constexpr):
    return tl.load(places + start) if WHOLE else tl.load(places + start, mask=there, other=0.0)


@triton_op("lightint::portable_linear_of_parts", mutates_args={})
def portable_linear_of_parts(parts: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`linear_of_parts` for graphs that are compiled into archives."""
    parts, weight = [each.contiguous() for each in parts], weight.contiguous()
    out = weight.new_empty((parts[0].shape[0], weight.shape[0]), dtype=torch.float32)
    grid, given, options = arguments(parts, weight, bias, out)
    wrap_triton(parts_kernel)[grid](*given, **options, **stated())
    return out


def linear_of_parts(parts: Sequence[Tensor], weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Fill ``out`` [rows, columns] float32, contiguous, of matrices whose features lie side by side."""
    grid, given, options = arguments(parts, weight, bias, out)
    parts_kernel[grid](*given, **options, **OPTIONS)


def arguments(
    parts: Sequence[Tensor], weight: Tensor, bias: Tensor | None, out: Tensor
) -> tuple[tuple[int], list[Any], dict[str, Any]]:
    """Grid, arguments and options of the launch."""
    rows, features = parts[0].shape
    columns = weight.shape[0]
    three = [*parts, *[parts[0]] * (3 - len(parts))]
    step, stages = _steps(weight.device)
    width = 2 if len(parts) == 1 else 1
    strides = [each.stride(0) for each in (*three, weight)]
    given = [*three, weight, weight if bias is None else bias, out, rows, columns, features, *strides]
    options = {
        "TILE": TILE, "STEP": step, "STRIP": STRIP, "PARTS": len(parts), "BIAS": bias is not None,
        "WIDTH": width, "WHOLE": features % (step * width) == 0, "num_warps": 8, "num_stages": stages,
    }  # fmt: skip
    return (triton.cdiv(rows, TILE) * triton.cdiv(columns, TILE),), given, options


@lru_cache(maxsize=16)
def _steps(device: torch.device) -> tuple[int, int]:
    """Features a step, and the steps that are in shared memory at once."""
    memory = _FEW_BYTES
    if device.type == "cuda" and torch.cuda.is_available():
        properties: Any = torch.cuda.get_device_properties(device)
        memory = properties.shared_memory_per_block_optin
    step = 64 if memory >= 2 * 64 * _FEATURE_BYTES else 32
    return step, min(memory // (step * _FEATURE_BYTES), 4)


_FEW_BYTES = 99 * 1024
"""Shared memory that a program may take on every device from sm_80 on."""

_FEATURE_BYTES = 4 * TILE * 2
"""What a feature takes of it: a tile's rows of three parts, and its columns of the weight."""
