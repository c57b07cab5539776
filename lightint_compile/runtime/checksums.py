"""What tensors hold, told by checksums: at once on the CPU, with the next transfer on a device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightint_compile.kernels.checksum import device_sums, host_sums, in_memory_order

Layout: TypeAlias = tuple[Any, ...]
"""How a tensor reads its memory: what a checksum does not say."""

_PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)


def layout_of(tensor: Tensor) -> Layout:
    """Sizes, strides, dtype, device and what is done to values when they are read."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.is_conj(), tensor.is_neg()


def why_unreadable(tensor: Tensor) -> str:
    """Why the memory of a tensor cannot be read here; empty where it can."""
    if type(tensor) not in _PLAIN:
        return f"it is a {type(tensor).__name__}"
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return f"it is {'quantized' if tensor.is_quantized else tensor.layout}"
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor) or torch._is_functional_tensor(tensor):
        return "a transformation of functions is under way"
    if tensor.device.type not in ("cpu", "cuda"):
        return f"it is on a {tensor.device.type} device"
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        return "a CUDA graph is being captured, in which nothing can be read"
    return ""


class Checksums:
    """Checksums of tensors, or of equal rows of them, from the moment they were asked for.

    Args:
        tensors: readable ones (:func:`why_unreadable`).
        rows: into how many rows along the first axis each is cut; one by default. Of each row there is a checksum.
    """

    def __init__(self, tensors: Sequence[Tensor], rows: Sequence[int] | None = None) -> None:
        counts = [1] * len(tensors) if rows is None else list(rows)
        self._values: list[int] = [0] * sum(counts)
        self._waiting: list[tuple[list[int], Tensor]] = []
        for device, members in _by_device(tensors).items():
            pieces = [in_memory_order(tensors[each].detach()) for each in members]
            cut, starts = [counts[each] for each in members], _starts(counts)
            places = [starts[each] + row for each in members for row in range(counts[each])]
            if _is_read_at_once(device):
                self._set(places, host_sums(pieces, cut))
            else:
                self._waiting.append((places, device_sums(pieces, cut)))

    def waiting(self) -> list[Tensor]:
        """What must come to the host before :meth:`values`; each exact in float64."""
        return [sums for _, sums in self._waiting]

    def arrived(self, numbers: Iterable[Tensor]) -> None:
        """The numbers behind :meth:`waiting`, in their order, on the CPU."""
        for (places, _), sums in zip(self._waiting, numbers, strict=True):
            low, high = sums.to(torch.int64).unbind(1)
            self._set(places, ((high << 32) | (low & 0xFFFFFFFF)).tolist())
        self._waiting = []

    def values(self) -> list[int]:
        """One number of 64 bits for each row of each tensor, in order. Nothing may be waiting."""
        assert not self._waiting
        return self._values

    def _set(self, places: Sequence[int], sums: Sequence[int]) -> None:
        for place, value in zip(places, sums, strict=True):
            self._values[place] = value


def _is_read_at_once(device: torch.device) -> bool:
    return device.type == "cpu"


def _by_device(tensors: Sequence[Tensor]) -> dict[torch.device, list[int]]:
    found: dict[torch.device, list[int]] = defaultdict(list)
    for place, tensor in enumerate(tensors):
        found[tensor.device].append(place)
    return found


def _starts(counts: Sequence[int]) -> list[int]:
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    return starts
