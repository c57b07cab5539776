"""64-bit checksums of memory, by which changed content of a tensor is found at the speed of memory.

What runs: xxHash on the CPU, one Triton kernel over all pieces on CUDA (:mod:`.portable.checksum`), and elsewhere
:func:`~.checksum_words.sums_of`, which is the specification of the kernel. Checksums of different devices are not
comparable.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checksum_words import sums_of


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
