"""Writes to inputs, put back in place after functionalisation.

A functional trace turns each write into a new value of the whole buffer (``slice_scatter``, ``copy``, ``index_put``)
and has every later read read that value. So it knows which reads are behind which write. Here these values become
writes again, where they stand and one for one: the operator that changes its operand and hands it back. Nothing of the
size of a buffer is made, and the program writes as often, in the same order and at the same places as the user's code.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.fx as fx

from lightint_compile.errors import CaptureError
from lightint_compile.passes.ir.fake_values import shape_of
from lightint_compile.passes.ir.input_writes import WRITE_WINDOW
from lightint_compile.passes.ir.op_arguments import argument, size_argument
from lightint_compile.passes.ir.program import tensor_of

aten = torch.ops.aten

_ON_ALL = frozenset(
    ("copy", "fill", "zero", "index_put", "index_copy", "index_fill", "index_add", "scatter", "scatter_add")
) | frozenset(("masked_fill", "masked_scatter", "add", "sub", "mul", "div", "clamp", "lerp", "addcmul", "bitwise_or"))
"""Operators that functionalisation makes of writes to a whole buffer, by name; with a ``_`` behind they write."""


def _in_place(node: fx.Node) -> Any:
    """The write that gives a buffer the value of ``node``, which is made from the buffer; ``None`` where it is none."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target._schema.name.removeprefix("aten::") not in _ON_ALL:
        return None
    before, after = (each.meta["val"] for each in (node.args[0], node))  # type: ignore[union-attr]
    if before.dtype != after.dtype or shape_of(before) != shape_of(after):
        return None
    packet = getattr(aten, f"{target._schema.name.removeprefix('aten::')}_")
    return getattr(packet, target._overloadname, None)


def put_in_place(
    traced: fx.GraphModule, finals: Mapping[fx.Node, fx.Node], paths: Mapping[fx.Node, str]
) -> list[fx.Node]:
    """Turn the new values of inputs into writes.

    Args:
        finals: for each placeholder that is written to its value at the end.
        paths: how the caller knows these inputs.

    Returns:
        The writes, which have the memory layout of their buffers: what reads them may have to be evaluated again.

    Raises:
        CaptureError: an input shares memory with another one, or is written to in another way than along whole axes.
    """
    _check_alone(traced.graph, paths)
    writes = []
    for buffer, final in finals.items():
        for old in _versions(buffer, final, paths[buffer]):
            with traced.graph.inserting_before(old):
                new = _written(traced.graph, old)
            new.meta = {**old.meta, "val": buffer.meta["val"]}
            old.replace_all_uses_with(new, propagate_meta=False)
            traced.graph.erase_node(old)
            writes.append(new)
    return writes


def refusal(path: str, why: str = "") -> CaptureError:
    """The error of a graph whose writes are left to Inductor."""
    reasons = (why, "a rewrite must not move such a write")
    fix = "return what it writes as a result, and pass it in again"
    return CaptureError("the graph writes to its inputs", where=path, why="; ".join(filter(None, reasons)), fix=fix)


def _check_alone(graph: fx.Graph, paths: Mapping[fx.Node, str]) -> None:
    """An input that is written to must not be seen under another name."""
    owners: dict[int, list[fx.Node]] = {}
    for node in graph.find_nodes(op="placeholder"):
        if isinstance(value := node.meta.get("val"), torch.Tensor):
            owners.setdefault(value.untyped_storage()._cdata, []).append(node)
    for nodes in owners.values():
        written = [node for node in nodes if node in paths]
        if written and len(nodes) > 1:
            raise refusal(paths[written[0]], "it shares memory with another input")


def _versions(buffer: fx.Node, final: fx.Node, path: str) -> list[fx.Node]:
    """The values of a buffer after each write, the first to the last."""
    found: list[fx.Node] = []
    node = final
    while node is not buffer:
        before = node.args[0] if node.op == "call_function" and node.args else None
        if tensor_of(before) is None or not (_in_place(node) or _window(node).places):
            raise refusal(path, f"{node.target} is no write to a window of it, nor to all of it")
        found.append(node)
        node = cast(fx.Node, before)
    return found[::-1]


def _written(graph: fx.Graph, old: fx.Node) -> fx.Node:
    """The write that makes the buffer ``old.args[0]`` hold what ``old`` does."""
    if (write := _in_place(old)) is not None:
        return graph.call_function(write, old.args, old.kwargs)
    window = _window(old)
    axes = list(window.places)
    starts = [start for start, _ in window.places.values()]
    ends = [_next(graph, start) if end is None else end for start, end in window.places.values()]
    return graph.call_function(WRITE_WINDOW, (old.args[0], window.value, axes, starts, ends, window.gone))


def _next(graph: fx.Graph, place: Any) -> Any:
    if not isinstance(place, fx.Node):
        return int(place) + 1
    end = graph.call_function(operator.add, (place, 1))
    end.meta = {**place.meta, "val": place.meta["val"] + 1}
    return end


@dataclass
class _Window:
    """A box of a buffer and what is put there.

    Attributes:
        rank: of the buffer.
        value: of the box's sizes, or broadcast to them, without the axes that are ``gone``.
        places: start and end along each axis that is cut; the end is ``None`` where one place was selected.
        views: how the box is cut, view by view.
    """

    rank: int
    value: Any
    places: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    views: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def gone(self) -> list[int]:
        """Axes of the buffer at which one place was selected, which the value lacks."""
        return sorted(axis for axis, (_, end) in self.places.items() if end is None)

    def enter(self, scatter: fx.Node) -> bool:
        """Whether a scatter puts its second operand into a part of this window, which then becomes the window."""
        left = [axis for axis in range(self.rank) if axis not in self.gone]
        axis = left[argument(scatter, "dim") % len(left)] if scatter.target in _SCATTERS else None
        if axis is None or axis in self.places:
            return False
        place = _place(scatter, self.rank)
        if place is None:
            return False
        self.places[axis] = place
        self.views.append(_view(scatter))
        self.value = argument(scatter, "src")
        return True


_SCATTERS: Mapping[Any, Any] = {
    aten.slice_scatter.default: aten.slice.Tensor,
    aten.select_scatter.default: aten.select.int,
}
"""What functionalisation makes of a write to a view, and the view."""


def _window(node: fx.Node) -> _Window:
    """The window that a scatter into a view, or into a view of a view, writes to; without places for another node."""
    buffer = node.args[0]
    assert isinstance(buffer, fx.Node)
    window = _Window(buffer.meta["val"].dim(), node)
    while isinstance(window.value, fx.Node) and window.value.args and _views(buffer, window.value) == window.views:
        inner = window.value
        if window.views and inner.target is aten.copy.default:
            window.value = inner.args[1]
            break
        if not window.enter(inner):
            break
    return window


def _views(buffer: fx.Node, node: fx.Node) -> list[tuple[Any, ...]] | None:
    """How the first operand of ``node`` is cut out of ``buffer``; ``None`` where it is something else."""
    found: list[tuple[Any, ...]] = []
    source = node.args[0]
    while source is not buffer:
        if not isinstance(source, fx.Node) or source.target not in _SCATTERS.values():
            return None
        found.append(_view(source))
        source = source.args[0]
    return found[::-1]


def _view(node: fx.Node) -> tuple[Any, ...]:
    """A view, or the view that a scatter writes through, as data."""
    target = _SCATTERS.get(node.target, node.target)
    names = ("dim", "index") if target is aten.select.int else ("dim", "start", "end", "step")
    given = [argument(node, name) for name in names]
    return (target, *(None if each is None else size_argument(each) for each in given))


def _place(scatter: fx.Node, rank: int) -> tuple[Any, Any] | None:
    """Start and end of what a scatter writes to along its axis; ``None`` where that is not all between two places."""
    if scatter.target is aten.select_scatter.default:
        index = argument(scatter, "index")
        if isinstance(index, int) and index < 0:
            size = scatter.meta["val"].shape[argument(scatter, "dim")]
            return (size + index, None) if isinstance(size, int) else None
        return index, None
    start, end, step = (argument(scatter, name) for name in ("start", "end", "step"))
    return (0 if start is None else start, sys.maxsize if end is None else end) if step == 1 else None
