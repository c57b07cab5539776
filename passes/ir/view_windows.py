"""Which part of a tensor a chain of views shows."""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.ir.memory_sharing import alias_source, is_write
from lightint_compile.passes.ir.program import tensor_of

aten = torch.ops.aten

View = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""An operator, and its arguments behind the tensor."""


@dataclass
class Window:
    """What views show of a tensor.

    Attributes:
        views: the chain. Equal chains show the same elements in the same order.
        ranges: start and end along axes of the tensor between which everything shown lies, where they are numbers.
    """

    views: list[View] = field(default_factory=list)
    ranges: dict[int, tuple[int, int]] = field(default_factory=dict)

    def misses(self, other: Window) -> bool:
        """Whether two windows of one tensor have no element in common, as far as numbers tell."""
        return any(
            end <= other.ranges[axis][0] or other.ranges[axis][1] <= start
            for axis, (start, end) in self.ranges.items()
            if axis in other.ranges
        )


def viewed(node: fx.Node) -> tuple[fx.Node, list[View]]:
    """What a node is a view of, itself for none, and the views; what a write hands back is what it has written."""
    views: list[View] = []
    while (source := _source(node)) is not None:
        views.insert(0, (node.target, node.args[1:], dict(node.kwargs)))
        if node.target is operator.getitem:
            tupled = node.args[0]
            assert isinstance(tupled, fx.Node)
            views.insert(0, (tupled.target, tupled.args[1:], dict(tupled.kwargs)))
        node = source
    return node, views


def _source(node: fx.Node) -> fx.Node | None:
    """What a node shows other elements of. Inductor takes ``_unsafe_view``, which states nothing, for a view, too."""
    if node.target is aten._unsafe_view.default:
        assert isinstance(node.args[0], fx.Node)
        return node.args[0]
    return None if is_write(node) else alias_source(node)


def window_of(base: fx.Node, views: Sequence[View]) -> Window:
    """The window of the tensor ``base`` that views show.

    Cuts along axes by numbers are followed, up to the first view that does anything else: what comes behind shows no
    more than that, but for ``as_strided``, which goes back to all of the memory.
    """
    window = Window(list(views))
    value = tensor_of(base)
    if value is None or any(target is aten.as_strided.default for target, _, _ in views):
        return window
    axes = list(range(value.dim()))
    for target, args, kwargs in views:
        if target not in (aten.slice.Tensor, aten.select.int):
            break
        dim, first, last, step = _cut(target, args, kwargs)
        axis = axes[dim]
        start, end = window.ranges.get(axis, (0, value.shape[axis]))
        found = _within(start, end, first, last, step)
        if found is None:
            break
        window.ranges[axis] = found
        if target is aten.select.int:
            axes.pop(dim)
    return window


def _cut(target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[int, Any, Any, Any]:
    """Axis, first place, end (``None`` behind the first place) and step of a cut."""
    if target is aten.select.int:
        dim, index = (*args, *kwargs.values())
        return dim, index, None, 1
    given = dict(zip(("dim", "start", "end", "step"), args, strict=False)) | kwargs
    end = given.get("end")
    return given.get("dim", 0), given.get("start") or 0, sys.maxsize if end is None else end, given.get("step", 1)


def _within(start: int, end: Any, first: Any, last: Any, step: Any) -> tuple[int, int] | None:
    """What a cut leaves of a range; ``None`` where that is not known in numbers."""
    numbers = (end, first, step) if last is None else (end, first, last, step)
    if step != 1 or not all(isinstance(number, int) for number in numbers):
        return None
    size = end - start
    begin = first + size if first < 0 else first
    stop = begin + 1 if last is None else last + size if last < 0 else last
    begin, stop = min(max(begin, 0), size), min(max(stop, 0), size)
    return start + begin, start + max(begin, stop)
