"""Whether tensors are the ones that a kept result came from: the same objects, not written to since.

A view is told by the tensor it views and its place in it: drivers make views of kept results anew in every call. A
chunk asks this of every weight of a model, more than a thousand, so each tensor is read twice and nothing is called.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

Marks: TypeAlias = tuple[Any, ...]
"""Of each tensor which one it is: its id, or the id of what it views with its place there. They hash."""


def marks_of(tensors: Sequence[torch.Tensor]) -> Marks:
    """The marks of ``tensors``: equal for the same ones, and for others only once one of the former is dead."""
    return tuple([id(tensor) if tensor._base is None else _place(tensor) for tensor in tensors])


@dataclass(frozen=True)
class Stamp:
    """Tensors at one moment, held weakly: a dead tensor never equals a live one.

    Attributes:
        marks: which they are.
        views: the positions of those that are views.
        versions: how often each was written to.
    """

    marks: Marks
    views: tuple[int, ...]
    versions: list[int]
    _dead: list[weakref.ref[torch.Tensor]]
    _alive: list[weakref.ref[torch.Tensor]]

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor]) -> Stamp | None:
        """The stamp of ``tensors``.

        ``None`` where a write could not be seen: a tensor made under ``inference_mode`` has no version counter.
        """
        if any(tensor.is_inference() for tensor in tensors):
            return None
        views = tuple(place for place, tensor in enumerate(tensors) if tensor._base is not None)
        dead: list[weakref.ref[torch.Tensor]] = []
        alive = [weakref.ref(_owner(tensor), dead.append) for tensor in tensors]
        return cls(marks_of(tensors), views, [tensor._version for tensor in tensors], dead, alive)

    def holds(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether these are the same tensors, unchanged.

        A tensor that was no view is told by its id, and only its version is read: of a thousand weights that no cache
        holds any more, reading is what takes long.
        """
        if not self.is_alive or len(tensors) != len(self.marks):
            return False
        marks: list[Any] = [*map(id, tensors)]
        for place in self.views:
            marks[place] = _place(tensors[place])
        return tuple(marks) == self.marks and [tensor._version for tensor in tensors] == self.versions

    @property
    def is_alive(self) -> bool:
        """Whether every tensor still exists."""
        return not self._dead


def _owner(tensor: torch.Tensor) -> torch.Tensor:
    """What a view is a view of; a view and what it views share their version."""
    return tensor if tensor._base is None else tensor._base


def _place(view: torch.Tensor) -> Any:
    """Where a view lies in what it views, and how it reads it."""
    reading = view.dtype, view.is_conj(), view.is_neg()
    return id(view._base), view.storage_offset(), tuple(view.shape), view.stride(), *reading
