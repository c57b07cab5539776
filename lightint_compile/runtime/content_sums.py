"""What tensors hold, told by checksums: at once on the CPU, with the next transfer on a device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightint_compile.kernels.checksum import Memory, device_sums, host_sums
from lightint_compile.torch_compat import is_transformed

Layout: TypeAlias = tuple[Any, ...]
"""How a tensor reads its memory: what a checksum does not say."""

PLAIN = frozenset((Tensor, torch.nn.Parameter, torch.nn.Buffer))
"""Tensors that are what their memory holds."""


def layout_of(tensor: Tensor) -> Layout:
    """Sizes, strides, dtype, device, and what is done to values when they are read; of odd tensors what they are."""
    if type(tensor) not in PLAIN or tensor.layout is not torch.strided:
        return type(tensor), tensor.layout
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.is_conj(), tensor.is_neg()


class Reading(NamedTuple):
    """How the memory of tensors of one layout is read.

    Attributes:
        layout: the layout.
        obstacle: why it cannot be read; empty where it can.
        in_order: whether it lies without gaps in the order of its axes.
        size: bytes.
    """

    layout: Layout
    obstacle: str
    in_order: bool
    size: int

    @classmethod
    def of(cls, tensor: Tensor, layout: Layout) -> Reading:
        """How ``tensor`` is read, which has this layout."""
        obstacle = _obstacle(tensor)
        if obstacle:
            return cls(layout, obstacle, False, 0)
        return cls(layout, "", tensor.is_contiguous(), tensor.numel() * tensor.element_size())


def _obstacle(tensor: Tensor) -> str:
    if type(tensor) not in PLAIN:
        return f"it is a {type(tensor).__name__}"
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return f"it is {'quantized' if tensor.is_quantized else tensor.layout}"
    if tensor.device.type not in ("cpu", "cuda"):
        return f"it is on a {tensor.device.type} device"
    return ""


def obstacle_now(devices: Iterable[str]) -> str:
    """Why no memory of these kinds of devices can be read at the moment; empty where it can."""
    if is_transformed():
        return "a transformation of functions is under way"
    if "cuda" in devices and torch.cuda.is_current_stream_capturing():
        return "a CUDA graph is being captured, in which nothing can be read"
    return ""


class Checksums:
    """Checksums of memory, from the moment they were asked for.

    Args:
        memories: at most one of each device, in the order of :meth:`values`.
    """

    def __init__(self, memories: Sequence[Memory]) -> None:
        self._values: list[list[int]] = [[] for _ in memories]
        self._waiting: list[tuple[int, Tensor]] = []
        self._held = memories  # until they were read
        at_once = [_is_read_at_once(memory.device) for memory in memories]
        for place in sorted(range(len(memories)), key=at_once.__getitem__):  # devices go on while the host reads
            if at_once[place]:
                self._values[place] = host_sums(memories[place])
            else:
                self._waiting.append((place, device_sums(memories[place])))

    def waiting(self) -> list[Tensor]:
        """What must come to the host before :meth:`values`; each exact in float64."""
        return [sums for _, sums in self._waiting]

    def arrived(self, numbers: Iterable[Tensor]) -> None:
        """The numbers behind :meth:`waiting`, in their order, on the CPU."""
        for (place, _), sums in zip(self._waiting, numbers, strict=True):
            low, high = sums.to(torch.int64).unbind(1)
            self._values[place] = ((high << 32) | (low & 0xFFFFFFFF)).tolist()
        self._waiting, self._held = [], []

    def values(self) -> list[list[int]]:
        """One number of 64 bits for each row of each memory. Nothing may be waiting."""
        assert not self._waiting
        return self._values


def _is_read_at_once(device: torch.device) -> bool:
    return device.type == "cpu"
