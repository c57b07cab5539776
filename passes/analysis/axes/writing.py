"""Movements of operators that write a part of a tensor: ranges, places and windows of a buffer."""

from __future__ import annotations

from typing import cast

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.axes.movement import Along, Movement, Read, Ref, Way, Written, moves
from lightint_compile.passes.analysis.axes.moving import aligned, bound, known_run, moved
from lightint_compile.passes.ir.input_writes import WRITE_WINDOW
from lightint_compile.passes.ir.op_arguments import argument, dimension, rank_of, size_argument, sizes_of
from lightint_compile.passes.ir.sizes import replaced

aten = torch.ops.aten

_WRITES_A_PART = "it writes a part of {}"


@moves(aten.slice_scatter.default)
def slice_scatter(node: fx.Node) -> Movement | None:
    """A range of one axis is written."""
    target, source = cast(list[fx.Node], node.args[:2])
    rank = rank_of(target)
    if rank_of(source) != rank:
        return None
    dim = dimension(node, rank)
    start, step = bound(argument(node, "start"), sizes_of(target)[dim]), size_argument(argument(node, "step"))
    return _written(aligned([target, source], rank), Written(Ref(target, dim), Ref(source, dim), start, step))


@moves(WRITE_WINDOW)
def write_window(node: fx.Node) -> Movement | None:
    """Ranges of some axes are written in place; of others, which the value lacks, one entry."""
    target, source = argument(node, "buffer"), argument(node, "value")
    dropped, sizes = argument(node, "dropped"), sizes_of(target)
    left = [axis for axis in range(len(sizes)) if axis not in dropped]
    if rank_of(source) != len(left):
        return None
    ways: list[Way] = [
        Along((Ref(target, axis), Ref(source, left.index(axis)))) if axis in left else Along()
        for axis in range(len(sizes))
    ]
    for axis, start in zip(argument(node, "axes"), argument(node, "starts"), strict=True):
        values = Ref(source, left.index(axis)) if axis in left else None
        ways[axis] = Written(Ref(target, axis), values, bound(start, sizes[axis]))
    refs = tuple(ref for way in ways if isinstance(way, Written) for ref in (way.ref, way.source) if ref is not None)
    return moved(tuple(ways), reads=(Read(refs, _WRITES_A_PART),))


@moves(aten.index_copy.default, aten.index_copy_.default)
def index_copy(node: fx.Node) -> Movement | None:
    """Places along one axis are written by their numbers; those that are known to be a run."""
    target, source = argument(node, "self"), argument(node, "source")
    first = known_run(argument(node, "index"))
    if first is None or rank_of(source) != rank_of(target):
        return None
    dim = dimension(node, rank_of(target))
    written = Written(Ref(target, dim), Ref(source, dim), first)
    return _written(aligned([target, source], rank_of(target)), written)


@moves(aten.select_scatter.default)
def select_scatter(node: fx.Node) -> Movement:
    """One place along an axis is written."""
    target, source = cast(list[fx.Node], node.args[:2])
    dim = dimension(node, rank_of(target))
    ways = [
        Along((Ref(target, axis), Ref(source, axis - (axis > dim)))) if axis != dim else Along()
        for axis in range(rank_of(target))
    ]
    index = bound(argument(node, "index"), sizes_of(target)[dim])
    return _written(tuple(ways), Written(Ref(target, dim), None, index))


def _written(ways: tuple[Way, ...], way: Written) -> Movement:
    refs = (way.ref,) if way.source is None else (way.ref, way.source)
    return moved(replaced(ways, way.ref.axis, way), reads=(Read(refs, _WRITES_A_PART),))
