"""Grids of tokens that one graph of a model hands to the next, so that a graph break hides none.

Behind a break tokens arrive as ``[batch, tokens, width]``, and no shape says how they lie in frames, rows and columns.
The graph that made them knew. It notes that of the tensors that it returns, and a graph that is compiled for such a
tensor starts from there. The note is on the tensor itself, for as long as it lives and nothing writes to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

GridSize = tuple[int, int, int]
"""Frames, height and width, in tokens."""

Told = tuple[tuple[int, GridSize], ...]
"""Positions of tensors among values, and the grids of their tokens."""

_NOTED = WeakTensorKeyDictionary()


def note(results: Sequence[Any], made: Iterable[tuple[int, GridSize]]) -> None:
    """Say of results that they are tokens of these grids."""
    for position, grid in made:
        result = results[position]
        if isinstance(result, torch.Tensor):
            _NOTED[result] = (grid, _version(result))


def told(values: Sequence[Any], positions: Iterable[int] | None = None) -> Told:
    """What is noted of some values, or of those at some positions."""
    if not _NOTED:
        return ()
    asked = range(len(values)) if positions is None else positions
    found = ((at, _grid_of(values[at])) for at in asked if isinstance(values[at], torch.Tensor))
    return tuple((at, grid) for at, grid in found if grid is not None)


def _grid_of(tensor: torch.Tensor) -> GridSize | None:
    grid, version = _NOTED.get(tensor, (None, 0))
    return grid if grid is not None and version == _version(tensor) else None


def _version(tensor: torch.Tensor) -> int:
    """How often a tensor was written to; inference tensors do not count it."""
    return -1 if tensor.is_inference() else tensor._version
