"""Checksums of many pieces of memory in one launch a kind of alignment; ``kernels.checksum.sums_of`` specifies them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from lightint_compile.torch_compat import raw_stream

from ..checksum_words import FIRST, PLACE, SECOND, THIRD, WORD
from ..triton_compat import OPTIONS

ALIGNED = 16
"""Bytes that an address must be a multiple of to be read in words; others are read byte by byte, which is slower."""

_BLOCK, _TURNS, _SMALL, _WARPS = 2048, 16, 512, 4
_FACTORS = tuple(map(tl.constexpr, (PLACE, FIRST, SECOND, THIRD)))
_PLACE, _FIRST, _SECOND, _THIRD = _FACTORS


@triton.jit
def _mixed(words, places):
    mixed = words ^ (places * _PLACE)
    mixed = mixed ^ (mixed >> 16)
    mixed = mixed * _FIRST + places
    mixed = mixed ^ (mixed >> 13)
    mixed = mixed * _SECOND
    mixed = mixed ^ (mixed >> 16)
    other = mixed * _THIRD
    return mixed, other ^ (other >> 15)


@triton.jit
def _add(sums, one, other):
    tl.atomic_add(sums, tl.sum(one, 0).to(tl.int32, bitcast=True), sem="relaxed")
    tl.atomic_add(sums + 1, tl.sum(other, 0).to(tl.int32, bitcast=True), sem="relaxed")


@triton.jit
def _bytewise(start, left, place, sums, SMALL: tl.constexpr):
    """Add the words of ``left`` bytes at ``start``, put together from bytes; ``place`` is that of the first word."""
    offsets = tl.arange(0, SMALL)
    one = tl.zeros((SMALL,), tl.uint32)
    other = tl.zeros((SMALL,), tl.uint32)
    done = 0  # words; a range over tensors is beyond the interpreter of Triton 3.6 with numpy from 2.4 on
    while done * 4 < left:
        rest = done + offsets
        words = tl.zeros((SMALL,), tl.uint32)
        for byte in tl.static_range(4):
            at = rest * 4 + byte
            words |= tl.load(start + at, mask=at < left, other=0).to(tl.uint32) << (8 * byte)
        first_of, second_of = _mixed(words, place + rest.to(tl.uint32))
        exists = rest * 4 < left
        one += tl.where(exists, first_of, 0)
        other += tl.where(exists, second_of, 0)
        done += SMALL
    _add(sums, one, other)


@triton.jit
def checksum_kernel(
    addresses, sizes, piece_of, part_of, sums,
    BLOCK: tl.constexpr, TURNS: tl.constexpr, SMALL: tl.constexpr, WORDWISE: tl.constexpr,
):  # fmt: skip
    """Add one part, ``BLOCK * TURNS`` words, of one piece to the sums [pieces, 2] of the piece; grid ``(parts,)``.

    Where ``WORDWISE``, addresses are multiples of :data:`ALIGNED` and whole parts are read in words, else in bytes.
    """
    piece = tl.load(piece_of + tl.program_id(0))
    first = tl.load(part_of + tl.program_id(0)).to(tl.int64) * (BLOCK * TURNS)
    left = tl.minimum(tl.load(sizes + piece) - first * 4, BLOCK * TURNS * 4).to(tl.int32)
    address = tl.load(addresses + piece) + first * 4
    if WORDWISE and left == BLOCK * TURNS * 4:
        offsets = tl.arange(0, BLOCK)
        start = tl.multiple_of(address.to(tl.pointer_type(tl.uint32)), 16)
        one = tl.zeros((BLOCK,), tl.uint32)
        other = tl.zeros((BLOCK,), tl.uint32)
        places = first.to(tl.uint32) + offsets.to(tl.uint32)
        for turn in range(TURNS):
            words = tl.load(start + turn * BLOCK + offsets)
            first_of, second_of = _mixed(words, places + turn * BLOCK)
            one += first_of
            other += second_of
        _add(sums + piece * 2, one, other)
    else:
        _bytewise(address.to(tl.pointer_type(tl.uint8)), left, first.to(tl.uint32), sums + piece * 2, SMALL)


class _Tables(NamedTuple):
    """What one launch reads: of each piece its address and size, of each part its piece and its number in it."""

    addresses: Tensor
    sizes: Tensor
    piece_of: Tensor
    part_of: Tensor
    wordwise: bool


def sums_at(addresses: Sequence[int], sizes: Sequence[int], device: torch.device) -> Tensor:
    """Checksums of the memory of ``device`` at these addresses, sizes in bytes: int32 [pieces, 2] there."""
    sums = torch.zeros((len(sizes), 2), dtype=torch.int32, device=device)
    places = tuple(addresses), tuple(sizes)
    if device.type != "cuda":
        _launch(_tables(*places, device, 0), sums)
        return sums
    with torch.cuda.device(device):
        _launch(_tables(*places, device, raw_stream(sums.device.index)), sums)
    return sums


def _launch(launches: Sequence[_Tables], sums: Tensor) -> None:
    sizes = {"BLOCK": _BLOCK, "TURNS": _TURNS, "SMALL": _SMALL}
    for tables in launches:
        kernel: Any = checksum_kernel[(tables.piece_of.numel(),)]
        *given, wordwise = tables
        kernel(*given, sums, **sizes, WORDWISE=wordwise, num_warps=_WARPS, **OPTIONS)


@lru_cache(maxsize=16)
def _tables(
    starts: tuple[int, ...], lengths: tuple[int, ...], device: torch.device, stream: int
) -> tuple[_Tables, ...]:
    """The launches for pieces at these places. Weights stay where they are: most calls find what an earlier one made.

    ``stream`` is a part of the key because that is where the tables were copied to the device.
    """
    # NumPy's repeat: PyTorch's wakes a team of threads for a handful of pieces, which takes milliseconds.
    addresses, sizes = (np.array(each, dtype=np.int64) for each in (starts, lengths))
    parts = (sizes + WORD * _BLOCK * _TURNS - 1) // (WORD * _BLOCK * _TURNS)
    aligned = addresses % ALIGNED == 0
    found = []
    for wordwise in (True, False):
        pieces = np.flatnonzero((aligned == wordwise) & (parts > 0))
        counts = parts[pieces]
        if not len(pieces):
            continue
        first = np.repeat(counts.cumsum() - counts, counts)
        part_of = np.arange(len(first)) - first
        lists = addresses, sizes, np.repeat(pieces, counts).astype(np.int32), part_of.astype(np.int32)
        there = [torch.from_numpy(each).to(device, non_blocking=True) for each in lists]
        found.append(_Tables(there[0], there[1], there[2], there[3], wordwise))
    return tuple(found)
