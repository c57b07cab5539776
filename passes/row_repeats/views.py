"""Rules of operations that only move or select values: repetitions themselves, views, splits and joins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.fx as fx

from lightint_compile.passes.evaluate import Size, shape_of, size_of
from lightint_compile.passes.row_repeats.layout import (
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
    quotient,
    regroup,
    repeated,
    repeats,
    size,
    without,
)
from lightint_compile.passes.row_repeats.plan import (
    MIXES,
    Blocked,
    Emitter,
    Layouts,
    Plan,
    Rule,
    argument,
    dimension,
    others_full,
    replaced,
    shape,
    unless_lost,
)

aten = torch.ops.aten


def _source(node: fx.Node) -> fx.Node:
    return cast(fx.Node, node.args[0])


def _repeat_interleave(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    source = _source(node)
    layout, dim = layouts(source), argument(node, 2, "dim")
    if dim is None and len(layout) != 1:
        return Blocked("repeat_interleave without a dimension flattens its operand")
    dim = int(dim or 0) % len(layout)
    layout = replaced(layout, dim, axis([*layout[dim], Segment(True, _times(shape(node)[dim], size(layout[dim])))]))
    return _repetition(node, source, layouts(source), layout)


def _repeat(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    source = _source(node)
    new = len(shape(node)) - len(layouts(source))
    before = ((),) * new + layouts(source)
    counts = [_times(whole, size(entry)) for whole, entry in zip(shape(node), before, strict=True)]
    layout = tuple(axis([Segment(True, count), *entry]) for count, entry in zip(counts, before, strict=True))
    if new == 0:
        return _repetition(node, source, before, layout)
    return _with_new_axes(source, layouts, layout, new)


def _expand(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    source = _source(node)
    target, before = shape(node), layouts(source)
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


def _times(whole: Size, part: Size) -> Size:
    found = quotient(whole, part)
    assert found is not None
    return found


def _view(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    source = _source(node)
    needed, result = regroup(layouts(source), shape(node))

    def arguments(emit: Emitter) -> Sequence[Any]:
        return emit.small(source), [emit.size(kept_size(entry)) for entry in result]

    plan = Plan(result, {source: needed}, computes=False, arguments=arguments)
    return unless_lost(plan, "the view cuts across the repeated axis")


def _permuted(order: Callable[[fx.Node, int], Sequence[int]]) -> Rule:
    def rule(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
        layout = layouts(_source(node))
        result = tuple(layout[dim] for dim in order(node, len(layout)))
        return Plan(result, {_source(node): layout}, computes=False)

    return rule


def _transposed(node: fx.Node, rank: int) -> Sequence[int]:
    order = list(range(rank))
    first, second = (int(cast(int, dim)) % rank for dim in node.args[1:3])
    order[first], order[second] = order[second], order[first]
    return order


def _unsqueeze(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    layout = layouts(_source(node))
    dim = dimension(node, 1, len(layout) + 1)
    return Plan((*layout[:dim], (), *layout[dim:]), {_source(node): layout}, computes=False)


def _squeeze(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    """``squeeze`` of named dimensions; the small tensor must not lose an axis that only repeats."""
    layout = layouts(_source(node))
    given = argument(node, 1, "dim")
    dims = {int(dim) % len(layout) for dim in ([given] if isinstance(given, int) else given)}
    gone = {dim for dim in dims if size(layout[dim]) == 1}
    if len(layout) - len(gone) != len(shape(node)):
        return Blocked("squeeze of an axis whose size is not known")
    result = tuple(entry for dim, entry in enumerate(layout) if dim not in gone)
    target = sorted(gone)
    return Plan(
        result, {_source(node): layout}, computes=False, arguments=lambda emit: (emit.small(_source(node)), target)
    )


def _select(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    source = _source(node)
    layout = layouts(source)
    dim = dimension(node, 1, len(layout))
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
    dim = dimension(node, 1, len(layout))
    if not is_constant(layout[dim]):
        return _along(node, layouts, dim)
    result = replaced(layout, dim, repeated(shape(node)[dim]))
    return Plan(result, {source: layout}, computes=False, forwards=source)


def _split(position: int, default: int = 0) -> Rule:
    def rule(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
        return _along(node, layouts, dimension(node, position, len(layouts(_source(node))), default))

    return rule


def _unbind(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    return _along(node, layouts, dimension(node, 1, len(layouts(_source(node)))), drops=True)


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
    rank = len(shape(node))
    dim = dimension(node, 1, rank)
    if any(len(layouts(part)) != rank for part in parts):
        return Blocked("cat of an empty tensor of another rank")
    common = _common([layouts(part) for part in parts], rank, skip=dim)
    operands = {part: replaced(common, dim, kept(shape(part)[dim])) for part in parts}
    plan = Plan(replaced(common, dim, kept(shape(node)[dim])), operands, computes=False)
    if any(not is_full(layouts(part)[dim]) for part in parts):
        return unless_lost(plan, "rows that repeat are joined with other rows along the same axis")
    return plan if repeats(plan.result) else MIXES


def _stack(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    parts = cast(list[fx.Node], node.args[0])
    rank = len(shape(node))
    dim = dimension(node, 1, rank)
    common = _common([layouts(part) for part in parts], rank - 1)
    result = (*common[:dim], kept(shape(node)[dim]), *common[dim:])
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
    dim = dimension(node, 1, len(layouts(source)))
    needed = without(layouts(source), [dim])
    result = replaced(needed, dim, layouts(index)[0])
    plan = Plan(result, {source: needed, index: layouts(index)}, computes=False)
    return unless_lost(plan, f"it selects along the repeated axis {dim}")


def _embedding(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    index = cast(fx.Node, node.args[1])
    operands = {index: layouts(index)} | others_full(node, index)
    return unless_lost(Plan((*layouts(index), kept(shape(node)[-1])), operands), "the table repeats, not the index")


def _filled(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    """One value everywhere: as repeated as whatever meets it. The small tensor has one element."""
    rank = len(shape(node))
    tail = list(node.args[1:])
    result = tuple(repeated(extent) for extent in shape(node))
    return Plan(result, {}, computes=False, arguments=lambda emit: ([1] * rank, *tail))


FILLS: dict[Any, Rule] = {
    aten.full.default: _filled,
    aten.ones.default: _filled,
    aten.zeros.default: _filled,
}

REPETITIONS: dict[Any, Rule] = {
    aten.repeat_interleave.self_int: _repeat_interleave,
    aten.repeat.default: _repeat,
    aten.expand.default: _expand,
}

VIEWS: dict[Any, Rule] = {
    aten.view.default: _view,
    aten.reshape.default: _view,
    aten.transpose.int: _permuted(_transposed),
    aten.t.default: _permuted(lambda node, rank: range(rank)[::-1]),
    aten.permute.default: _permuted(lambda node, rank: [int(d) % rank for d in cast(list[int], node.args[1])]),
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    aten.split.Tensor: _split(2),
    aten.split_with_sizes.default: _split(2),
    aten.chunk.default: _split(2),
    aten.unbind.int: _unbind,
    aten.cat.default: _cat,
    aten.stack.default: _stack,
    aten.index_select.default: _index_select,
    aten.embedding.default: _embedding,
}

#: Targets of the small call where they differ: a small tensor may need a copy where the large one was a view, and
#: leading axes are added by a view.
SMALL_TARGETS: dict[Any, Any] = {
    aten.view.default: aten.reshape.default,
    aten.squeeze.dim: aten.squeeze.dims,
    aten.expand.default: aten.reshape.default,
    aten.repeat.default: aten.reshape.default,
}
