"""Movements of operators that write a part of a tensor: ranges, places and windows of a buffer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.axes.movement import Along, Movement, Read, Ref, Way, Written, moves
from lightint_compile.passes.analysis.axes.moving import known_run, moved
from lightint_compile.passes.analysis.axes.places import bound, slice_start
from lightint_compile.passes.ir.fake_values import Size
from lightint_compile.passes.ir.input_writes import WRITE_WINDOW
from lightint_compile.passes.ir.op_arguments import argument, dimension, rank_of, size_argument, sizes_of

aten = torch.ops.aten


@moves(aten.slice_scatter.default)
def slice_scatter(node: fx.Node) -> Movement | None:
    """A range of one axis is written."""
    target, source = cast(list[fx.Node], node.args[:2])
    dim = dimension(node, rank_of(target))
    start = slice_start(node, sizes_of(target)[dim], sizes_of(source)[dim])
    return _written(target, source, {dim: start}, step=size_argument(argument(node, "step")))


@moves(WRITE_WINDOW)
def write_window(node: fx.Node) -> Movement | None:
    """Ranges of some axes are written in place; of others, which the value lacks, one entry."""
    target, source = argument(node, "buffer"), argument(node, "value")
    places = zip(argument(node, "axes"), argument(node, "starts"), strict=True)
    starts = {axis: bound(start, sizes_of(target)[axis]) for axis, start in places}
    return _written(target, source, starts, argument(node, "dropped"))


@moves(aten.index_copy.default, aten.index_copy_.default)
def index_copy(node: fx.Node) -> Movement | None:
    """Places along one axis are written by their numbers; those that are known to be a run."""
    target, first = argument(node, "self"), known_run(argument(node, "index"))
    found = None if first is None else {dimension(node, rank_of(target)): first}
    return None if found is None else _written(target, argument(node, "source"), found)


@moves(aten.select_scatter.default)
def select_scatter(node: fx.Node) -> Movement | None:
    """One place along an axis is written."""
    target, source = cast(list[fx.Node], node.args[:2])
    dim = dimension(node, rank_of(target))
    return _written(target, source, {dim: bound(argument(node, "index"), sizes_of(target)[dim])}, (dim,))


def _written(
    target: fx.Node, source: fx.Node, starts: Mapping[int, Size | None], dropped: Sequence[int] = (), step: Size = 1
) -> Movement | None:
    """``source`` written from ``starts`` on; it lacks the axes that are ``dropped``."""
    rank = rank_of(target)
    left = [axis for axis in range(rank) if axis not in dropped]
    if rank_of(source) != len(left):
        return None
    values = [Ref(source, left.index(axis)) if axis in left else None for axis in range(rank)]
    ways: list[Way] = [
        Along((Ref(target, axis), own)) if own is not None else Along() for axis, own in enumerate(values)
    ]
    for axis, start in starts.items():
        if start is None:
            return None
        ways[axis] = Written(Ref(target, axis), values[axis], start, step)
    refs = tuple(ref for way in ways if isinstance(way, Written) for ref in (way.ref, way.source) if ref is not None)
    return moved(tuple(ways), reads=(Read(refs, "it writes a part of {}"),))
