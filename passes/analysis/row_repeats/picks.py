"""Rows that are picked from fewer: by an index, by a mask, or by being joined from parts whose rows repeat.

``cat([zeros(n), t.expand(m)])`` has two rows to pick from, as has ``pad(t.expand(m), (n, 0))``; ``x[index]`` has those
of ``x``, and a mask along one axis false and true. All of it is known from how the value is made, so nothing has to be
checked in a call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.axes.factors import (
    Axis,
    Factor,
    Kind,
    Picks,
    axis,
    extent,
    is_same,
    plain,
    same,
)
from lightint_compile.passes.analysis.axes.movement import Along, Joined, Movement, Padded, Picked, Ref, Way, Written
from lightint_compile.passes.analysis.axes.plans import Blocked, Layouts, Plan, operands_of, results_of
from lightint_compile.passes.analysis.row_repeats.layout import is_full, kept_size
from lightint_compile.passes.ir.fake_values import Size, hint_at, shape_of, size_of
from lightint_compile.passes.ir.memory_sharing import alias_source, is_write, memory_of
from lightint_compile.passes.ir.op_arguments import argument, rank_of
from lightint_compile.passes.ir.program import tensor_of
from lightint_compile.passes.ir.sizes import replaced, total
from lightint_compile.passes.ir.sizes import same as equal

aten = torch.ops.aten

Allowed: TypeAlias = Callable[[Picks], bool]
"""Which picks are followed."""

FEWER = 4
"""Rows are picked where they are this many times over: fewer do not pay for the index."""

_FEWEST = 16
"""A mask of fewer values is no token axis."""


def none(_: Picks) -> bool:
    """No pick is followed."""
    return False


def every(_: Picks) -> bool:
    """Every pick is followed."""
    return True


def picked(node: fx.Node, movement: Movement, layouts: Layouts, allows: Allowed) -> Plan | None:
    """How to compute a call that picks or joins rows on those that it picks from; ``None`` for every other."""
    if movement.regroups is not None or len(movement.outputs) != 1:
        return None
    (ways,) = movement.outputs
    places = [place for place, way in enumerate(ways) if isinstance(way, (Picked, Joined, Written, Padded))]
    if len(places) != 1:
        return None
    (place,) = places
    if isinstance(ways[place], Picked):
        return _indexed(node, movement, place, layouts, allows)
    if isinstance(ways[place], Padded):
        return _padded(node, movement, place, layouts, allows)
    return None if node.kwargs else _joined(node, movement, place, layouts, allows)


def _indexed(node: fx.Node, movement: Movement, place: int, layouts: Layouts, allows: Allowed) -> Plan | None:
    way = movement.outputs[0][place]
    assert isinstance(way, Picked)
    if way.first is not None or not is_full(layouts(way.numbers.node)[way.numbers.axis]):
        return None
    if _is_overwritten(way.ref.node) or _is_overwritten(way.numbers.node):
        return None  # they are read further down
    table = plain(extent(layouts(way.ref.node)[way.ref.axis]))
    found = _planned(node, movement, place, Picks(extent(table), way.numbers.node), [(way.ref, table)], layouts, allows)
    return None if found is None else replace(found, forwards=way.ref.node)


def _is_overwritten(node: fx.Node) -> bool:
    """Whether anything writes to the memory of a node's value."""
    memory = memory_of(node)
    waiting = [memory]
    while waiting:
        for user in waiting.pop().users:
            if is_write(user) and memory_of(user) is memory:
                return True
            if alias_source(user) is not None:
                waiting.append(user)
    return False


def _joined(node: fx.Node, movement: Movement, place: int, layouts: Layouts, allows: Allowed) -> Plan | None:
    parts = _parts(movement.outputs[0][place], shape_of(node.meta["val"])[place], layouts)
    if all(is_full(part) for _, part in parts):
        return None
    picks = Picks(total(kept_size(part) for _, part in parts), tuple(part for _, part in parts))
    own = [(ref, layouts(ref.node)[ref.axis]) for ref, _ in parts]
    found = _planned(node, movement, place, picks, own, layouts, allows)
    args = ([ref.node for ref, _ in parts], place)
    return None if found is None else replace(found, args=args, target=aten.cat.default)


def _padded(node: fx.Node, movement: Movement, place: int, layouts: Layouts, allows: Allowed) -> Plan | None:
    """One row of padding for all that there are on a side; of what is not padded by a constant nothing is known."""
    way = movement.outputs[0][place]
    assert isinstance(way, Padded)
    amounts = way.before, way.after
    own = layouts(way.ref.node)[way.ref.axis]
    if is_full(own) or node.kwargs or not all(isinstance(amount, int) and amount >= 0 for amount in amounts):
        return None
    if node.target is aten.pad.default and argument(node, "mode") != "constant":
        return None
    around = [(same(amount),) if amount else () for amount in amounts]
    parts = (*around[0], own, *around[1])
    picks = Picks(total(map(kept_size, parts)), parts)
    found = _planned(node, movement, place, picks, [(way.ref, own)], layouts, allows)
    few = [0, 0] * (rank_of(node) - 1 - place) + [min(amount, 1) for amount in amounts]
    return None if found is None else replace(found, args=(way.ref.node, few, *node.args[2:]))


def _parts(way: Way, length: Size, layouts: Layouts) -> list[tuple[Ref, Axis]]:
    """What stands one behind the other along an axis: where it is read, and how it repeats there.

    A buffer of one value that is written to from a place on is three such parts.
    """
    if isinstance(way, Joined):
        return [(ref, layouts(ref.node)[ref.axis]) for ref in way.refs]
    if not isinstance(way, Written) or way.source is None or way.step != 1:
        return []
    if way.ref.node.meta["val"].dtype is not way.source.node.meta["val"].dtype:
        return []  # what is written becomes a value of the buffer's dtype, and what is joined would not
    written = layouts(way.source.node)[way.source.axis]
    if not is_same(layouts(way.ref.node)[way.ref.axis]):
        return []
    before, behind = way.start, size_of(length - way.start - extent(written))
    parts = [(way.ref, before, same(before)), (way.source, extent(written), written), (way.ref, behind, same(behind))]
    return [(ref, part) for ref, size, part in parts if size != 0]


def _planned(
    node: fx.Node,
    movement: Movement,
    place: int,
    picks: Picks,
    own: list[tuple[Ref, Axis]],
    layouts: Layouts,
    allows: Allowed,
) -> Plan | None:
    """The layouts of the result, which is picked along the axis ``place``, and those of the operands, which are read as
    ``own`` there."""
    length = shape_of(node.meta["val"])[place]
    if FEWER * hint_at(node, picks.rows) > hint_at(node, length) or not allows(picks):
        return None
    (ways,) = movement.outputs
    rest = movement._replace(outputs=(replaced(ways, place, Along()),), reads=())
    results = results_of(node, rest, layouts)
    assert not isinstance(results, Blocked)
    operands = operands_of(rest, results, layouts, Kind.SAME, own)
    result = replaced(results[0], place, axis([Factor(picks, length)]))
    return None if operands is None else Plan((result,), operands, computes=False)


def masked(node: fx.Node, allows: Allowed) -> Plan | None:
    """A mask along one axis as one that is picked from false and true."""
    value = tensor_of(node)
    if value is None or value.dtype is not torch.bool:
        return None
    sizes = shape_of(value)
    long = [place for place, size in enumerate(sizes) if not equal(size, 1)]
    if len(long) != 1 or hint_at(node, sizes[long[0]]) < _FEWEST:
        return None
    made = Picks(2, node)
    if not allows(made):
        return None
    shape = [2 if place == long[0] else 1 for place in range(len(sizes))]

    def small(call: Callable[..., fx.Node]) -> fx.Node:
        numbers = call(aten.arange.default, 2, device=value.device)
        return call(aten.reshape.default, call(aten.ne.Scalar, numbers, 0), shape)

    layout = tuple(axis([Factor(made, size)]) if place == long[0] else plain(size) for place, size in enumerate(sizes))
    return Plan((layout,), computes=False, made=small)
