"""How repetition follows the movement of axes: what of the result repeats, and what the operands must look like."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.axes.factors import (
    Axis,
    Kind,
    Layout,
    extent,
    is_same,
    operand_layouts,
    plain,
    same,
    times,
)
from lightint_compile.passes.analysis.axes.movement import (
    Alike,
    Along,
    Joined,
    Movement,
    Picked,
    Range,
    Ref,
    Times,
    Way,
)
from lightint_compile.passes.analysis.axes.moving import operand, squeezed
from lightint_compile.passes.analysis.row_repeats.effects import MIXES, Blocked, Emitter, Layouts, Plan
from lightint_compile.passes.analysis.row_repeats.layout import is_full, is_simple, kept_size, meet, regroup, repeats
from lightint_compile.passes.ir.fake_values import Size, shape_of
from lightint_compile.passes.ir.op_arguments import argument, dimension, sizes_of, tensors
from lightint_compile.passes.ir.op_families import Family
from lightint_compile.passes.ir.sizes import replaced

aten = torch.ops.aten

REPETITIONS = frozenset(
    target for family in (Family.INTERLEAVE, Family.REPEAT, Family.EXPAND) for target in family.value
)


def plan_of(node: fx.Node, movement: Movement, layouts: Layouts) -> Plan | Blocked:
    """How to compute a call on small tensors."""
    if movement.regroups is not None:
        return _view(node, movement.regroups, layouts)
    if node.target in REPETITIONS:
        return _repetition(node, movement, layouts)
    if node.target in Family.SELECT.value and is_same(layouts(operand(node))[_dim(node, layouts)]):
        return _one_of_equals(node, layouts)
    if node.target in Family.SQUEEZE.value:
        return _squeeze(node, movement, layouts)
    if node.target is aten.scaled_dot_product_attention.default and any(argument(node, name) for name in _UNFOLLOWED):
        return Blocked("attention with a mask, dropout, grouped heads, or of a value with itself", mixes=True)
    return _followed(node, movement, layouts)


_UNFOLLOWED = ("attn_mask", "dropout_p", "is_causal", "enable_gqa")


def _followed(node: fx.Node, movement: Movement, layouts: Layouts) -> Plan | Blocked:
    results = [tuple(carried(way, size, layouts) for way, size in output) for output in movement.sized(node)]
    if len(set(map(len, results))) != 1:
        return Blocked("its results have different axes", mixes=True)
    columns = zip(*results, strict=True)
    result = tuple(entries[0] if len(set(entries)) == 1 else plain(extent(entries[0])) for entries in columns)
    if not repeats(result):
        return _lost(node, movement, layouts)
    needed = operand_layouts(demands(movement, result, layouts), layouts)
    if needed is None:
        return Blocked("it reads a value in two ways")
    if node.target in Family.FILL.value:
        return _filled(node, result)
    forwards = _shortened(node, movement, layouts)
    return Plan(result, needed, movement.computes, forwards=forwards)


def carried(way: Way, length: Size, layouts: Layouts) -> Axis:
    """What repeats along an axis of the result."""
    match way:
        case Along(refs):
            return reduce(meet, [layouts(ref.node)[ref.axis] for ref in refs]) if refs else ()
        case Alike(None):
            return same(length)
        case Range(ref) if is_same(layouts(ref.node)[ref.axis]):
            return same(length)
        case Picked(_, index):
            return layouts(index.node)[index.axis]
        case _:
            return plain(length)


def demands(movement: Movement, result: Layout, layouts: Layouts) -> Iterator[tuple[Ref, Axis]]:
    """What axes of the operands are read as for the one layout that all results have."""
    for read in movement.reads:
        yield from _written_out(read.refs, layouts)
    for way, entry in ((way, entry) for output in movement.outputs for way, entry in zip(output, result, strict=True)):
        match way:
            case Along(refs):
                for ref in refs:
                    own = layouts(ref.node)[ref.axis]
                    stays = extent(own) == 1 or (movement.stretches and is_same(own))
                    yield ref, own if stays else entry
            case Range(ref) if is_same(layouts(ref.node)[ref.axis]):
                yield ref, layouts(ref.node)[ref.axis]
            case Range(ref) | Alike(Ref() as ref):
                yield from _written_out([ref], layouts)
            case Joined(refs):
                yield from _written_out(refs, layouts)
            case Picked(_, index):
                yield index, layouts(index.node)[index.axis]


def _written_out(refs: Iterable[Ref], layouts: Layouts) -> Iterator[tuple[Ref, Axis]]:
    return ((ref, plain(extent(layouts(ref.node)[ref.axis]))) for ref in refs)


def _lost(node: fx.Node, movement: Movement, layouts: Layouts) -> Blocked:
    """Why nothing of the result repeats."""
    for read in movement.reads:
        for ref in read.refs if read.how else ():
            if not is_full(layouts(ref.node)[ref.axis]):
                return Blocked(read.how.format(f"the repeated axis {ref.axis}"))
    for way in movement.ways():
        if isinstance(way, Joined) and any(not is_full(layouts(ref.node)[ref.axis]) for ref in way.refs):
            return Blocked("rows that repeat are joined with other rows along the same axis")
        if isinstance(way, Range) and not is_full(layouts(way.ref.node)[way.ref.axis]):
            return Blocked(f"it selects along the repeated axis {way.ref.axis}")
    return MIXES if len(tensors(node)) > 1 else Blocked("its operand does not repeat")


def _shortened(node: fx.Node, movement: Movement, layouts: Layouts) -> fx.Node | None:
    """The operand of a slice along an axis that is one value: its small tensor is that of the slice too."""
    if node.target in Family.SLICE.value:
        for way in movement.ways():
            if isinstance(way, Range) and is_same(layouts(way.ref.node)[way.ref.axis]):
                return way.ref.node
    return None


# --- calls whose arguments are sizes, or places along an axis --------------------------------------------------------


def _dim(node: fx.Node, layouts: Layouts) -> int:
    return dimension(node, len(layouts(operand(node))))


def _view(node: fx.Node, source: fx.Node, layouts: Layouts) -> Plan | Blocked:
    needed, result = regroup(layouts(source), sizes_of(node))

    def arguments(emit: Emitter) -> Sequence[Any]:
        return emit.small(source), [emit.size(kept_size(entry)) for entry in result]

    if not repeats(result):
        return Blocked("the view cuts across the repeated axis")
    return Plan(result, {source: needed}, computes=False, arguments=arguments, target=aten.reshape.default)


def _repetition(node: fx.Node, movement: Movement, layouts: Layouts) -> Plan | Blocked:
    """The small tensor is the operand's; leading axes that are new get size one by a view."""
    source, (ways,) = operand(node), movement.outputs
    before = layouts(source)
    layout = tuple(
        _copied(way, layouts) if isinstance(way, Times) else carried(way, length, layouts)
        for way, length in zip(ways, sizes_of(node), strict=True)
    )
    if not all(map(is_simple, layout)):
        return Blocked("the axis is repeated both around and inside its values")
    new = len(layout) - len(before)
    if new == 0:
        return Plan(layout, {source: before}, computes=False, forwards=source)
    small = [kept_size(entry) for entry in layout[new:]]

    def arguments(emit: Emitter) -> Sequence[Any]:
        return emit.small(source), [1] * new + [emit.size(length) for length in small]

    return Plan(layout, {source: before}, computes=False, arguments=arguments, target=aten.reshape.default)


def _copied(way: Times, layouts: Layouts) -> Axis:
    entry = () if way.ref is None else layouts(way.ref.node)[way.ref.axis]
    return times(entry, way.copies, Kind.SAME, outside=way.outside)


def _squeeze(node: fx.Node, movement: Movement, layouts: Layouts) -> Plan | Blocked:
    """The small tensor must not lose an axis that only repeats."""
    source, dims = operand(node), squeezed(node)
    result = tuple(carried(way, 1, layouts) for way in movement.ways())
    if not repeats(result):
        return Blocked("its operand does not repeat")
    return Plan(
        result,
        {source: layouts(source)},
        computes=False,
        arguments=lambda emit: (emit.small(source), dims),
        target=aten.squeeze.dims,
    )


def _one_of_equals(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    source, dim = operand(node), _dim(node, layouts)
    layout = layouts(source)
    result = (*layout[:dim], *layout[dim + 1 :])
    return Plan(result, {source: layout}, computes=False, arguments=lambda emit: (emit.small(source), dim, 0))


def _filled(node: fx.Node, result: Layout) -> Plan:
    """One value everywhere: as repeated as whatever meets it. The small tensor has one element."""
    place = 0 if isinstance(node.args[0], (list, tuple)) else 1  # ``new_zeros`` takes a tensor for its dtype first
    args = replaced(node.args, place, [1] * len(result))
    return Plan(result, {}, computes=False, arguments=lambda emit: args)


def element_of(node: fx.Node, parent: Plan) -> Plan | Blocked:
    """One of several results: their common layout, with the element's own sizes where nothing repeats."""
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor):
        return Blocked("the element is not a tensor")
    entries = zip(parent.result, shape_of(value), strict=True)
    result = tuple(plain(length) if is_full(entry) else entry for entry, length in entries)
    return Plan(result, {operand(node): result}, computes=False)
