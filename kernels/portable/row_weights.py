"""Rows of scores to rows of weights: a softmax that reads float32 and writes 16 bits, masks included."""

from __future__ import annotations

import math

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
    scores, weights, mask, keys, blocks, rows, heads, first_head, first_row,
    mask_batch, mask_head, mask_row, mask_key, scale,
    ADDED: tl.constexpr, CHOSEN: tl.constexpr, ALIGNED: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One row of one head; grid ``(rows, heads of the round)``. ``scale`` is that of powers of two.

    A row in which every score is minus infinity gets zeros; one with a NaN gets NaNs.
    """
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    place = (head * rows + row) * blocks * ALIGNED
    scores, weights = scores + place, weights + place
    of_all = first_head + head
    mask += of_all // heads * mask_batch + of_all % heads * mask_head + (first_row + row) * mask_row
    whole = keys // STEP * STEP  # of scores that are read without asking whether they exist, in words
    peak, total = tl.full((STEP,), float("-inf"), tl.float32), tl.zeros((STEP,), tl.float32)
    for start in range(0, whole, STEP):
        found = _scores(scores, mask, start, keys, mask_key, scale, ADDED, CHOSEN, True, STEP)
        peak, total = _joined(peak, total, found)
    if whole < keys:
        found = _scores(scores, mask, whole, keys, mask_key, scale, ADDED, CHOSEN, False, STEP)
        peak, total = _joined(peak, total, found)
    base = _finite(tl.max(peak, 0))
    mass = tl.sum(total * tl.exp2(peak - base), 0)
    share = 1.0 / tl.where(mass == 0.0, 1.0, mass)  # without a key every exponential is 0
    for start in range(0, whole, STEP):
        found = _scores(scores, mask, start, keys, mask_key, scale, ADDED, CHOSEN, True, STEP)
        weight = (tl.exp2(found - base) * share).to(weights.dtype.element_ty)
        tl.store(weights + start + tl.arange(0, STEP), weight)
    if whole < keys:
        found = _scores(scores, mask, whole, keys, mask_key, scale, ADDED, CHOSEN, False, STEP)
        weight = (tl.exp2(found - base) * share).to(weights.dtype.element_ty)
        column = whole + tl.arange(0, STEP)
        tl.store(weights + column, weight, mask=column < keys)


@triton.jit
def _joined(peak, total, found):
    """The highest score so far, and the sum of exponentials below it, each lane for itself."""
    higher = tl.maximum(peak, found)
    base = _finite(higher)
    return higher, total * tl.exp2(peak - base) + tl.exp2(found - base)


@triton.jit
def _finite(peak):
    return tl.where(peak == float("-inf"), 0.0, peak)


@triton.jit
def _scores(
    scores, mask, start, keys, mask_key, scale,
    ADDED: tl.constexpr, CHOSEN: tl.constexpr, WHOLE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """A run of a row's scores in powers of two; minus infinity where there is no key, or one that takes no part."""
    column = start + tl.arange(0, STEP)
    there = column < keys
    if WHOLE:
        found = tl.load(scores + column) * scale
    else:
        found = tl.where(there, tl.load(scores + column, mask=there, other=0.0) * scale, float("-inf"))
    if ADDED:
        added = tl.load(mask + column.to(tl.int64) * mask_key, mask=there, other=0.0)
        found += added.to(tl.float32) * 1.4426950408889634  # the logarithm of e
    if CHOSEN:
        takes_part = tl.load(mask + column.to(tl.int64) * mask_key, mask=there, other=0)
        found = tl.where(takes_part != 0, found, float("-inf"))
    return found


def fill_row_weights(scores: Tensor, weights: Tensor, mask: Tensor | None, head: int, row: int, scale: float) -> None:
    """Fill ``weights`` with the softmax of ``scores * scale`` over keys, under a mask.

    Args:
        scores, weights: ``[heads, rows, keys]`` float32, and of 16 bits; rows are a multiple of :data:`ALIGNED` long
            in memory, the same in both, and lie behind each other.
        mask: ``[batch, all heads, all rows, keys]``, bool (True takes part) or numbers that are added; or none.
        head, row: of the first row, among the heads of all samples and among all rows.
    """
    heads, rows, keys = scores.shape
    chosen = mask is not None and mask.dtype == torch.bool
    given = scores if mask is None else mask.view(torch.uint8) if chosen else mask
    steps = (0, 0, 0, 0) if mask is None else mask.stride()
    sizes = [keys, scores.stride(1) // ALIGNED, rows, 1 if mask is None else mask.shape[1], head, row]
    options = {"ADDED": mask is not None and not chosen, "CHOSEN": chosen, "ALIGNED": ALIGNED, "STEP": STEP}
    factor = scale * math.log2(math.e)
    row_weights_kernel[(rows, heads)](scores, weights, given, *sizes, *steps, factor, **options, num_warps=8, **OPTIONS)
