"""Rules of operations that only move or select values: repetitions themselves, views, splits and joins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.row_repeats.effects import (
    MIXES,
    Blocked,
    Emitter,
    Layouts,
    Plan,
    Rule,
    others_full,
    unless_lost,
)
from lightint_compile.passes.analysis.row_repeats.layout import (
    Axis,
    Layout,
    Segment,
    axis,
    is_constant,
    is_full,
    is_simple,
    kept,
    kept_size,
    meet,
    regroup,
    repeated,
    repeats,
    size,
    without,
)
from lightint_compile.passes.ir.fake_values import Size, shape_of, size_of
from lightint_compile.passes.ir.op_arguments import (
    argument,
    dimension,
    dimensions,
    permutation,
    size_argument,
    sizes_of,
)
from lightint_compile.passes.ir.op_families import Family, by_operator
from lightint_compile.passes.ir.sizes import replaced

aten = torch.ops.aten


def _source(node: fx.Node) -> fx.Node:
    return cast(fx.Node, node.args[0])


def _interleave(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    source = _source(node)
    layout, dim = layouts(source), argument(node, "dim")
    if dim is None and len(layout) != 1:
        return Blocked("repeat_interleave without a dimension flattens its operand")
    dim = int(dim or 0) % len(layout)
    entry = axis([*layout[dim], Segment(True, size_argument(argument(node, "repeats")))])
    return _repetition(node, source, layout, replaced(layout, dim, entry))


def _repeat(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    source = _source(node)
    counts = list(map(size_argument, argument(node, "repeats")))
    new = len(counts) - len(layouts(source))
    before = ((),) * new + layouts(source)
    layout = tuple(axis([Segment(True, count), *entry]) for count, entry in zip(counts, before, strict=True))
    if new == 0:
        return _repetition(node, source, before, layout)
    return _with_new_axes(source, layouts, layout, new)


def _expand(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    source = _source(node)
    target, before = sizes_of(node), layouts(source)
    new = len(target) - len(before)
    axes = [
        repeated(wanted) if size(entry) == 1 else entry
        for wanted, entry in zip(target, ((),) * new + before, strict=True)
    ]
    if new == 0:
        return _repetition(node, source, before, tuple(axes))
    return _with_new_axes(source, layouts, tuple(axes), new)


def _repetition(node: fx.Node, source: fx.Node, before: Layout, layout: Layout) -> Plan | Blocked:
    """A node whose small tensor is its operand's; axes that now alternate more than once are written out before it."""
    if not all(map(is_simple, layout)):
        return Blocked("the axis is repeated both around and inside its values")
    return Plan(layout, {source: before}, computes=False, forwards=source)


def _with_new_axes(source: fx.Node, layouts: Layouts, layout: Layout, new: int) -> Plan | Blocked:
    """A repetition that also adds leading axes: the small tensor gets them with size one, by a view."""
    if not all(map(is_simple, layout)):
        return Blocked("the axis is repeated both around and inside its values")
    small = [kept_size(entry) for entry in layout[new:]]

    def arguments(emit: Emitter) -> Sequence[Any]:
        return emit.small(source), [1] * new + [emit.size(extent) for extent in small]

    return Plan(layout, {source: layouts(source)}, computes=False, arguments=arguments)


def _view(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    source = _source(node)
    needed, result = regroup(layouts(source), sizes_of(node))

    def arguments(emit: Emitter) -> Sequence[Any]:
        return emit.small(source), [emit.size(kept_size(entry)) for entry in result]

    plan = Plan(result, {source: needed}, computes=False, arguments=arguments)
    return unless_lost(plan, "the view cuts across the repeated axis")


def _permuted(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    layout = layouts(_source(node))
    return Plan(tuple(layout[dim] for dim in permutation(node)), {_source(node): layout}, computes=False)


def _unsqueeze(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    layout = layouts(_source(node))
    dim = dimension(node, len(layout) + 1)
    return Plan((*layout[:dim], (), *layout[dim:]), {_source(node): layout}, computes=False)


def _squeeze(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    """``squeeze`` of named dimensions; the small tensor must not lose an axis that only repeats."""
    layout = layouts(_source(node))
    gone = {dim for dim in dimensions(node, len(layout)) if size(layout[dim]) == 1}
    if len(layout) - len(gone) != len(sizes_of(node)):
        return Blocked("squeeze of an axis whose size is not known")
    result = tuple(entry for dim, entry in enumerate(layout) if dim not in gone)
    target = sorted(gone)
    return Plan(
        result, {_source(node): layout}, computes=False, arguments=lambda emit: (emit.small(_source(node)), target)
    )


def _select(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    source = _source(node)
    layout = layouts(source)
    dim = dimension(node, len(layout))
    if is_constant(layout[dim]):
        result = (*layout[:dim], *layout[dim + 1 :])
        return Plan(result, {source: layout}, computes=False, arguments=lambda emit: (emit.small(source), dim, 0))
    return _along(node, layouts, dim, drops=True)


def _along(node: fx.Node, layouts: Layouts, dim: int, *, drops: bool = False) -> Plan | Blocked:
    """An operation that reads one axis as it is, and leaves every other axis alone."""
    source = _source(node)
    needed = without(layouts(source), [dim])
    result = (*needed[:dim], *(() if drops else (kept(_extent(node, dim)),)), *needed[dim + 1 :])
    plan = Plan(result, {source: needed}, computes=False)
    return unless_lost(plan, f"it selects along the repeated axis {dim}")


def _extent(node: fx.Node, dim: int) -> Size:
    value = node.meta["val"]
    return size_of((value if isinstance(value, torch.Tensor) else value[0]).shape[dim])


def _slice(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    source = _source(node)
    layout = layouts(source)
    dim = dimension(node, len(layout))
    if not is_constant(layout[dim]):
        return _along(node, layouts, dim)
    result = replaced(layout, dim, repeated(sizes_of(node)[dim]))
    return Plan(result, {source: layout}, computes=False, forwards=source)


def _split(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    return _along(node, layouts, dimension(node, len(layouts(_source(node)))))


def _unbind(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    return _along(node, layouts, dimension(node, len(layouts(_source(node)))), drops=True)


def getitem(node: fx.Node, parent: Plan) -> Plan | Blocked:
    """The rule of one element of a split: the parent's layout, with the element's own sizes where nothing repeats."""
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor):
        return Blocked("the element is not a tensor")
    entries = zip(parent.result, shape_of(value), strict=True)
    result = tuple(kept(extent) if is_full(entry) else entry for entry, extent in entries)
    return Plan(result, {_source(node): result}, computes=False)


def _cat(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    parts = cast(list[fx.Node], node.args[0])
    rank = len(sizes_of(node))
    dim = dimension(node, rank)
    if any(len(layouts(part)) != rank for part in parts):
        return Blocked("cat of an empty tensor of another rank")
    common = _common([layouts(part) for part in parts], rank, skip=dim)
    operands = {part: replaced(common, dim, kept(sizes_of(part)[dim])) for part in parts}
    plan = Plan(replaced(common, dim, kept(sizes_of(node)[dim])), operands, computes=False)
    if any(not is_full(layouts(part)[dim]) for part in parts):
        return unless_lost(plan, "rows that repeat are joined with other rows along the same axis")
    return plan if repeats(plan.result) else MIXES


def _stack(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    parts = cast(list[fx.Node], node.args[0])
    rank = len(sizes_of(node))
    dim = dimension(node, rank)
    common = _common([layouts(part) for part in parts], rank - 1)
    result = (*common[:dim], kept(sizes_of(node)[dim]), *common[dim:])
    plan = Plan(result, dict.fromkeys(parts, common), computes=False)
    return plan if repeats(plan.result) else MIXES


def _common(layouts: Sequence[Layout], rank: int, skip: int | None = None) -> Layout:
    out: list[Axis] = []
    for dim in range(rank):
        entry = layouts[0][dim]
        for other in layouts[1:] if dim != skip else ():
            entry = meet(entry, other[dim])
        out.append(entry)
    return tuple(out)


def _index_select(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    """Rows picked by an index that itself repeats are a repetition of the rows picked by the small index."""
    source, index = _source(node), cast(fx.Node, node.args[2])
    dim = dimension(node, len(layouts(source)))
    needed = without(layouts(source), [dim])
    result = replaced(needed, dim, layouts(index)[0])
    plan = Plan(result, {source: needed, index: layouts(index)}, computes=False)
    return unless_lost(plan, f"it selects along the repeated axis {dim}")


def _embedding(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    index = cast(fx.Node, node.args[1])
    operands = {index: layouts(index)} | others_full(node, index)
    return unless_lost(Plan((*layouts(index), kept(sizes_of(node)[-1])), operands), "the table repeats, not the index")


def _filled(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    """One value everywhere: as repeated as whatever meets it. The small tensor has one element."""
    rank = len(sizes_of(node))
    tail = list(node.args[1:])
    result = tuple(repeated(extent) for extent in sizes_of(node))
    return Plan(result, {}, computes=False, arguments=lambda emit: ([1] * rank, *tail))


FILLS: dict[Any, Rule] = by_operator({Family.FILL: _filled})

REPETITIONS: dict[Any, Rule] = by_operator(
    {Family.INTERLEAVE: _interleave, Family.REPEAT: _repeat, Family.EXPAND: _expand}
)

VIEWS: dict[Any, Rule] = by_operator(
    {
        Family.VIEW: _view,
        Family.PERMUTATION: _permuted,
        Family.UNSQUEEZE: _unsqueeze,
        Family.SQUEEZE: _squeeze,
        Family.SELECT: _select,
        Family.SLICE: _slice,
        Family.SPLIT: _split,
        Family.UNBIND: _unbind,
        Family.CAT: _cat,
        Family.STACK: _stack,
        Family.INDEX_SELECT: _index_select,
        Family.EMBEDDING: _embedding,
    }
)

#: Targets of the small call where they differ: a small tensor may need a copy where the large one was a view, and
#: leading axes are added by a view.
SMALL_TARGETS: dict[Any, Any] = {
    aten.view.default: aten.reshape.default,
    aten._unsafe_view.default: aten.reshape.default,
    aten.squeeze.dim: aten.squeeze.dims,
    aten.expand.default: aten.reshape.default,
    aten.repeat.default: aten.reshape.default,
}
