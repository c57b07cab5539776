"""Rows of scores to rows of weights and their sums: a softmax that reads float32 and writes 16 bits, masks included."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_compat import OPTIONS

STEP = 4096
"""Scores of a row that a program has at once."""

ALIGNED = 8
"""Rows in memory are a multiple of it long, so that products and the kernel read whole words."""


@triton.jit(do_not_specialize=["keys", "blocks", "rows", "heads", "first_head", "first_row"])
def row_weights_kernel(
    scores, weights, masses, mask, keys, blocks, rows, heads, first_head, first_row,
    mask_batch, mask_head, mask_row, mask_key, scale,
    ADDED: tl.constexpr, CHOSEN: tl.constexpr, ALIGNED: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One row of one head; grid ``(heads of the round * rows,)``.

    A row in which every score is minus infinity gets zeros, and a mass of one; one with a NaN gets NaNs.
    """
    place = tl.program_id(0).to(tl.int64)
    head, row = place // rows, place % rows
    scores, weights = scores + place * blocks * ALIGNED, weights + place * blocks * ALIGNED
    of_all = first_head + head
    mask += of_all // heads * mask_batch + of_all % heads * mask_head + (first_row + row) * mask_row
    whole = keys // STEP * STEP  # a row's scores up to here fill steps: their loads need no mask, and so are wide
    peak, total = tl.full((STEP,), float("-inf"), tl.float32), tl.zeros((STEP,), tl.float32)
    for start in range(0, whole, STEP):
        found = _scores(scores, mask, start, keys, mask_key, scale, ADDED, CHOSEN, True, STEP)
        peak, total = _joined(peak, total, found)
    if whole < keys:
        found = _scores(scores, mask, whole, keys, mask_key, scale, ADDED, CHOSEN, False, STEP)
        peak, total = _joined(peak, total, found)
    base = _finite(tl.max(peak, 0))
    mass = tl.sum(total * _exp(peak - base), 0)
    tl.store(masses + place, tl.where(mass == 0.0, 1.0, mass))
    for start in range(0, whole, STEP):
        found = _scores(scores, mask, start, keys, mask_key, scale, ADDED, CHOSEN, True, STEP)
        tl.store(weights + start + tl.arange(0, STEP), _exp(found - base).to(weights.dtype.element_ty))
    if whole < keys:
        found = _scores(scores, mask, whole, keys, mask_key, scale, ADDED, CHOSEN, False, STEP)
        column = whole + tl.arange(0, STEP)
        tl.store(weights + column, _exp(found - base).to(weights.dtype.element_ty), mask=column < keys)


@triton.jit
def _joined(peak, total, found):
    """The highest score so far, and the sum of exponentials below it, each lane for itself."""
    higher = tl.maximum(peak, found)
    base = _finite(higher)
    return higher, total * _exp(peak - base) + _exp(found - base)


@triton.jit
def _exp(number):
    return tl.exp2(number * 1.4426950408889634)  # the logarithm of e: taken here, it overflows no score


@triton.jit
def _finite(peak):
    return tl.where(peak == float("-inf"), 0.0, peak)


@triton.jit
def _scores(
    scores, mask, start, keys, mask_key, scale,
    ADDED: tl.constexpr, CHOSEN: tl.constexpr, WHOLE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """A run of a row's scores; minus infinity where there is no key, or one that takes no part."""
    column = start + tl.arange(0, STEP)
    there = column < keys
    if WHOLE:
        found = tl.load(scores + column) * scale
    else:
        found = tl.where(there, tl.load(scores + column, mask=there, other=0.0) * scale, float("-inf"))
    if ADDED:
        found += tl.load(mask + column.to(tl.int64) * mask_key, mask=there, other=0.0).to(tl.float32)
    if CHOSEN:
        takes_part = tl.load(mask + column.to(tl.int64) * mask_key, mask=there, other=0)
        found = tl.where(takes_part != 0, found, float("-inf"))
    return found


def fill_row_weights(
    scores: Tensor, weights: Tensor, masses: Tensor, mask: Tensor | None, head: int, row: int, scale: float
) -> None:
    """Fill ``weights`` with the exponentials of ``scores * scale`` under a mask, of each row below its highest one.

    Their sums go into ``masses``. They are rounded before they are divided by these, as in flash attention: the largest
    is one, and none is lost for being one of many.

    Args:
        scores, weights: ``[heads, rows, keys]`` float32, and of 16 bits; rows are a multiple of :data:`ALIGNED` long
            in memory, the same in both, and lie behind each other.
        masses: ``[heads, rows]`` float32, contiguous.
        mask: ``[batch, all heads, all rows, keys]``, bool (True takes part) or numbers that are added; or none.
        head, row: of the first row, among the heads of all samples and among all rows.
    """
    heads, rows, keys = scores.shape
    width = scores.stride(1)
    assert width % ALIGNED == 0 and scores.stride() == weights.stride() == (rows * width, width, 1)
    chosen = mask is not None and mask.dtype == torch.bool
    given = scores if mask is None else mask.view(torch.uint8) if chosen else mask
    steps = (0, 0, 0, 0) if mask is None else mask.stride()
    sizes = [keys, width // ALIGNED, rows, 1 if mask is None else mask.shape[1], head, row]
    options = {"ADDED": mask is not None and not chosen, "CHOSEN": chosen, "ALIGNED": ALIGNED, "STEP": STEP}
    tensors = (scores, weights, masses, given)
    row_weights_kernel[(heads * rows,)](*tensors, *sizes, *steps, scale, **options, num_warps=8, **OPTIONS)
