"""Where on an axis a call begins, counted from the front: numbers, symbols, and those counted from the back."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from lightint_compile.passes.ir.fake_values import Size, size_of
from lightint_compile.passes.ir.op_arguments import argument, size_argument


def slice_start(node: fx.Node, length: Size, kept: Size) -> Size | None:
    """Where a slice, or what writes one, starts on an axis of ``length`` of which it takes ``kept`` entries.

    A start that is counted from the back by a symbol (``y[:, -n:]``) may lie in front of the axis, and is then 0; how
    many entries there are up to the end says which. ``None`` where the end does not tell either.
    """
    start = argument(node, "start")
    if _is_from_front(start):
        return bound(start, length)
    stop = _end_at_back(argument(node, "end"), length)
    return None if stop is None or argument(node, "step") != 1 else size_of(stop - kept)


def _end_at_back(end: Any, length: Size) -> Size | None:
    """Where a slice ends that ends at the back, or at a number counted from there; ``None`` of any other."""
    stop = length if end is None else size_argument(end)
    if isinstance(stop, int) and stop < 0:
        return size_of(length + stop)
    return length if stop == length or (isinstance(stop, int) and stop >= _NO_END) else None


_NO_END = 2**62
"""Ends from here on are none: tracers write the largest number of 64 bits."""


def _is_from_front(value: Any) -> bool:
    """Whether a place is a number, or a symbol that is known not to be negative."""
    value = value.meta["val"] if isinstance(value, fx.Node) else value
    return not isinstance(value, torch.SymInt) or bool(statically_known_true(value >= 0))


def bound(value: Any, length: Size) -> Size | None:
    """Where a range starts, counted from the front and within the axis as far as that is known.

    ``None`` where it is a symbol that may be negative, and may not be.
    """
    given: Size = 0 if value is None else size_argument(value)
    if not _is_from_front(value):
        value = value.meta["val"] if isinstance(value, fx.Node) else value
        return size_of(given + length) if statically_known_true(value < 0) else None
    if isinstance(given, int) and given < 0:
        given = size_of(given + length)
    if isinstance(given, int) and isinstance(length, int):
        given = min(max(given, 0), length)
    return given
