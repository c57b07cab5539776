"""Whether tensors are the ones that a kept result came from: the same objects, not written to since."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Stamp:
    """Tensors at one moment, held weakly: a dead tensor never equals a live one."""

    tensors: tuple[weakref.ref[torch.Tensor], ...]
    versions: tuple[int, ...]

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor]) -> Stamp | None:
        """The stamp of ``tensors``.

        ``None`` where a write could not be seen: a tensor made under ``inference_mode`` has no version counter.
        """
        if any(tensor.is_inference() for tensor in tensors):
            return None
        return cls(tuple(map(weakref.ref, tensors)), tuple(tensor._version for tensor in tensors))

    def holds(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether these are the same tensors, unchanged. They must not be made under ``inference_mode``."""
        return all(
            kept() is tensor and version == tensor._version
            for kept, version, tensor in zip(self.tensors, self.versions, tensors, strict=True)
        )

    @property
    def is_alive(self) -> bool:
        """Whether every tensor still exists."""
        return all(kept() is not None for kept in self.tensors)
