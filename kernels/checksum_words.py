"""The words of a checksum and how they are mixed: the specification that every implementation agrees with, bit by bit.

A checksum is made of the little-endian 32-bit words of a piece of memory, the last one filled up with zeros. Each word
is mixed with its place, in the way of MurmurHash3's finaliser (Appleby, public domain), into two numbers of 32 bits,
and each of them is summed over all words modulo 2^32. Sums do not depend on the order, so that any number of programs
may add to them and the result is the same bit by bit; each word is mixed with its place, so that permuted contents
differ. For one changed word the first sum always changes, as the mixture is a bijection of the word; any other two
contents have equal sums with a probability of about 2^-64. It is no defence against somebody who looks for two equal
sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 4
"""Bytes of a word."""

PLACE, FIRST, SECOND, THIRD = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F
"""Odd factors: of the place, of the two rounds of the first number, and of the second number."""

_ALL = 0xFFFFFFFF
_AT_ONCE = 1 << 22
"""Words that the plain form mixes at a time: each takes some fifty bytes while it is."""


def sums_of(piece: Tensor, rows: int = 1) -> Tensor:
    """The specification: checksums of the ``rows`` equal rows of a contiguous tensor, int32 [rows, 2] beside it."""
    if not rows:
        return torch.zeros((0, 2), dtype=torch.int32, device=piece.device)
    flat = piece.detach()
    flat = torch.view_as_real(flat.resolve_conj()) if flat.is_complex() else flat
    size = flat.numel() // rows
    flat = flat.as_strided((rows, size), (size, 1)).view(torch.uint8)  # an axis of size 1 may have any stride
    sums = flat.new_zeros((2, rows), dtype=torch.int64)
    for start in range(0, flat.shape[1], WORD * _AT_ONCE):
        part = flat[:, start : start + WORD * _AT_ONCE]
        filled = torch.nn.functional.pad(part, (0, -part.shape[1] % WORD)).to(torch.int64).unflatten(1, (-1, WORD))
        words = sum(filled[..., byte] << 8 * byte for byte in range(WORD))
        places = torch.arange(filled.shape[1], device=piece.device) + start // WORD
        sums += torch.stack([mixed.sum(1) for mixed in _mixed(words, places)])
    signed = (sums & _ALL) - ((sums >> 31) & 1) * (_ALL + 1)
    return signed.T.to(torch.int32)


def _mixed(words: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Both numbers of each word, int64 below 2^32. Products wrap in int64, which leaves their low half right."""
    mixed = words ^ (places * PLACE & _ALL)
    mixed = mixed ^ mixed >> 16
    mixed = (mixed * FIRST + places) & _ALL
    mixed = mixed ^ mixed >> 13
    mixed = mixed * SECOND & _ALL
    mixed = mixed ^ mixed >> 16
    other = mixed * THIRD & _ALL
    return mixed, other ^ other >> 15
