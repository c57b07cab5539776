"""Checksums of memory: 64 bits that tell whether a tensor holds what it held, at the speed of memory.

A checksum is made of the little-endian 32-bit words of a piece of memory, the last one filled up with zeros. Each word
is mixed with its place, in the way of MurmurHash3's finaliser (Appleby, public domain), into two numbers of 32 bits,
and each of them is summed over all words modulo 2^32. Sums do not depend on the order, so that any number of programs
may add to them and the result is the same bit by bit; the place in the mixture tells permuted contents apart. For one
changed word the first sum always changes, as the mixture is a bijection of the word; any other two contents have equal
sums with a probability of about 2^-64. It is no defence against somebody who looks for two equal sums.

What runs: xxHash on the CPU, one Triton kernel over all pieces on CUDA (:mod:`.portable.checksum`), and elsewhere
:func:`sums_of`, which is the specification of the kernel. Checksums of different devices are not comparable.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

WORD = 4
"""Bytes of a word."""

PLACE, FIRST, SECOND, THIRD = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F
"""Odd factors: of the place, of the two rounds of the first number, and of the second number."""

_ALL = 0xFFFFFFFF
_AT_ONCE = 1 << 22
"""Words that the plain form mixes at a time: each takes some fifty bytes while it is."""


def in_memory_order(tensor: Tensor) -> Tensor:
    """``tensor`` with its axes in the order of memory and without gaps; a copy where it has gaps or overlaps."""
    if tensor.is_contiguous():
        return tensor
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda axis: (-strides[axis], axis))
    ordered = tensor.permute(order)
    return ordered if ordered.is_contiguous() else tensor.contiguous()


class Memory(NamedTuple):
    """Pieces of memory of one device: tensors cut into equal rows, in the order of memory.

    Attributes:
        device: theirs.
        addresses, sizes: of each row of each tensor, in bytes.
        tensors: those whose memory it is, contiguous.
        rows: into how many rows each is cut, a divisor of its elements.
    """

    device: torch.device
    addresses: list[int]
    sizes: list[int]
    tensors: list[Tensor]
    rows: list[int]

    @classmethod
    def of(cls, tensors: Sequence[Tensor], rows: Sequence[int] | None = None) -> Memory:
        """The memory of contiguous tensors (:func:`in_memory_order`) of one device, at least one."""
        memory = cls(tensors[0].device, [], [], [], [])
        for tensor, count in zip(tensors, rows or [1] * len(tensors), strict=True):
            memory.add(tensor, tensor.numel() * tensor.element_size(), count)
        return memory

    def add(self, tensor: Tensor, size: int, rows: int = 1) -> None:
        """One more contiguous tensor, of ``size`` bytes."""
        start, each = tensor.data_ptr(), size // max(rows, 1)
        self.tensors.append(tensor)
        self.rows.append(rows)
        self.addresses.extend([start] if rows == 1 else [start + row * each for row in range(rows)])
        self.sizes.extend([each] * rows)


def device_sums(memory: Memory) -> Tensor:
    """Checksums of rows on a device that is not the CPU, started and not waited for: int32 [rows, 2] on the device."""
    launch = _kernel() if memory.device.type == "cuda" else None
    if launch is None:
        return torch.cat([sums_of(*piece) for piece in zip(memory.tensors, memory.rows, strict=True)])
    return launch(memory.addresses, memory.sizes, memory.device)


@cache
def _kernel() -> Callable[[Sequence[int], Sequence[int], torch.device], Tensor] | None:
    """The launcher of the Triton kernel; ``None`` without Triton."""
    try:
        from .portable.checksum import sums_at
    except ImportError:
        return None
    return sums_at


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


def host_sums(memory: Memory) -> list[int]:
    """Checksums of rows on the CPU, 64 bits each."""
    digest = _host_digest()
    return [digest(_bytes_at(*place)) for place in zip(memory.addresses, memory.sizes, strict=True)]


def _bytes_at(address: int, size: int) -> Any:
    return (ctypes.c_char * size).from_address(address) if size else b""


@cache
def _host_digest() -> Callable[..., int]:
    """XXH3, which reads at the speed of memory; where the package is missing, BLAKE2, at about 1 GB/s."""
    try:
        from xxhash import xxh3_64_intdigest
    except ImportError:
        return lambda content: int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
    digest: Callable[..., int] = xxh3_64_intdigest
    return digest
