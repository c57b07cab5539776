"""Whether tensors are the ones that a kept result came from: the same objects, not written to since.

A view is told by the tensor it views and its place in it: drivers make views of kept results anew in every call.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Stamp:
    """Tensors at one moment, held weakly: a dead tensor never equals a live one."""

    owners: tuple[weakref.ref[torch.Tensor], ...]
    places: tuple[Any, ...]
    versions: tuple[int, ...]

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor]) -> Stamp | None:
        """The stamp of ``tensors``.

        ``None`` where a write could not be seen: a tensor made under ``inference_mode`` has no version counter.
        """
        if any(tensor.is_inference() for tensor in tensors):
            return None
        owners = tuple(weakref.ref(_owner(tensor)) for tensor in tensors)
        return cls(owners, tuple(map(_place, tensors)), tuple(tensor._version for tensor in tensors))

    def holds(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether these are the same tensors, unchanged. They must not be made under ``inference_mode``."""
        return all(
            kept() is _owner(tensor) and version == tensor._version and place == _place(tensor)
            for kept, place, version, tensor in zip(self.owners, self.places, self.versions, tensors, strict=True)
        )

    @property
    def is_alive(self) -> bool:
        """Whether every tensor still exists."""
        return all(kept() is not None for kept in self.owners)


def _owner(tensor: torch.Tensor) -> torch.Tensor:
    """What a view is a view of; a view and what it views share their version."""
    return tensor if tensor._base is None else tensor._base


def _place(tensor: torch.Tensor) -> Any:
    """Where a view lies in what it views, and how it reads it; ``None`` for a tensor of its own."""
    if tensor._base is None:
        return None
    reading = tensor.dtype, tensor.is_conj(), tensor.is_neg()
    return tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), *reading
