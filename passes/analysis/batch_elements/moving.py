"""Rules of operations that move values or select some of them: views, repetitions, splits and joins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.batch_elements.axes import (
    Axis,
    Kind,
    Layout,
    Part,
    axis,
    batches,
    extent,
    is_same,
    plain,
    regroup,
    row_extent,
    same,
)
from lightint_compile.passes.analysis.batch_elements.rules import (
    MEETS,
    Layouts,
    Mixes,
    Rowwise,
    Rule,
    Several,
    broadcast,
    fitted,
    joined,
    skeleton,
    without_elements,
)
from lightint_compile.passes.ir.fake_values import Size, shape_of
from lightint_compile.passes.ir.op_arguments import (
    argument,
    dimension,
    dimensions,
    permutation,
    size_argument,
    sizes_of,
)
from lightint_compile.passes.ir.op_families import Family, by_operator
from lightint_compile.passes.ir.sizes import product, quotient, replaced

aten = torch.ops.aten

SELECTS = Mixes("it selects along the batch")


def _source(node: fx.Node) -> fx.Node:
    return cast(fx.Node, node.args[0])


def _view(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    layout = regroup(of(_source(node)), sizes_of(node))
    if layout is None:
        return Mixes("the view cuts across the batch")
    sizes = _row_sizes(cast(Sequence[Any], node.args[1]), layout)
    return Mixes("several sizes of the view are not known") if sizes is None else _with(layout, node, sizes)


def _row_sizes(given: Sequence[Any], layout: Layout) -> list[Any] | None:
    """Size arguments for one element; ``None`` when two of them would have to be left to the operation."""
    open_before = -1 in given
    sizes: list[Any] = []
    for entry, size in zip(layout, given, strict=True):
        rows = row_extent(entry)
        sizes.append(size if not batches(entry) or size == -1 else rows if isinstance(rows, int) else -1)
    return sizes if sizes.count(-1) <= 1 or (open_before and sizes == list(given)) else None


def _with(layout: Layout | Several, node: fx.Node, *more: Any) -> Rowwise:
    return Rowwise(layout, args=(node.args[0], *more))


def _permuted(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    layout = of(_source(node))
    return Rowwise(tuple(layout[dim] for dim in permutation(node)))


def _unsqueeze(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    layout = of(_source(node))
    dim = dimension(node, len(layout) + 1)
    return Rowwise((*layout[:dim], (), *layout[dim:]))


def _squeeze(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    """``squeeze`` of named dimensions: an element alone must not lose the axis of the batch."""
    layout = of(_source(node))
    dims = dimensions(node, len(layout))
    if any(batches(layout[dim]) for dim in dims):
        return SELECTS
    kept = tuple(entry for dim, entry in enumerate(layout) if dim not in dims or extent(entry) != 1)
    return Rowwise(kept) if len(kept) == len(sizes_of(node)) else Mixes("squeeze of an axis whose size is not known")


def _select(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    layout = of(_source(node))
    dim = dimension(node, len(layout))
    return SELECTS if batches(layout[dim]) else Rowwise((*layout[:dim], *layout[dim + 1 :]))


def _slice(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    """A range of an axis; of one with the batch all of it, or whole runs around the batch."""
    layout = of(_source(node))
    dim = dimension(node, len(layout))
    length = sizes_of(node)[dim]
    if not batches(layout[dim]):
        return Rowwise(replaced(layout, dim, same(length) if is_same(layout[dim]) else plain(length)))
    start, end, step = (argument(node, name) for name in ("start", "end", "step"))
    if length == extent(layout[dim]) and step == 1:
        return Rowwise(layout)
    run, whole = _run(layout[dim]), extent(layout[dim])
    if isinstance(end, int) and isinstance(whole, int):
        end = min(end, whole)
    rows = [quotient(bound, run) if isinstance(bound, int) else None for bound in (start or 0, end)]
    found = _shortened(layout[dim], length)
    if None in rows or found is None or step != 1 or (start or 0) < 0 or cast(int, end) < 0:
        return SELECTS
    inner = row_extent(_inner(layout[dim]))
    return _with(replaced(layout, dim, found), node, dim, *(product([cast(Size, row), inner]) for row in rows))


def _run(of: Axis) -> Size:
    """The extent of the batch with all that lies inside of it."""
    return extent(_inner(of))


def _inner(of: Axis) -> Axis:
    """The batch with all that lies inside of it."""
    parts = skeleton(of)
    first = next(index for index, part in enumerate(parts) if part.kind is Kind.BATCH)
    return parts[first:]


def _shortened(of: Axis, length: Size) -> Axis | None:
    """An axis of whole runs of ``of``; ``None`` when ``length`` is none."""
    outer = quotient(length, _run(of))
    return None if outer is None else axis(Part(Kind.PLAIN, outer), *_inner(of))


def _split(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    """``split``, ``split_with_sizes`` and ``chunk``: consecutive ranges of an axis."""
    layout = of(_source(node))
    dim = dimension(node, len(layout))
    lengths = [shape_of(value)[dim] for value in node.meta["val"]]
    if not batches(layout[dim]):
        return Rowwise(Several(replaced(layout, dim, plain(length)) for length in lengths))
    pieces = [_shortened(layout[dim], length) for length in lengths]
    if None in pieces:
        return SELECTS
    sizes = [row_extent(cast(Axis, piece)) for piece in pieces]
    found = Several(replaced(layout, dim, cast(Axis, piece)) for piece in pieces)
    if not all(isinstance(size, int) for size in sizes):
        return Mixes("a split of the batch into parts of unknown size")
    if node.target is aten.chunk.default:
        return Rowwise(found) if len(set(sizes)) == 1 else SELECTS
    return _with(found, node, sizes if isinstance(node.args[1], (list, tuple)) else sizes[0], *node.args[2:])


def _unbind(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    layout = of(_source(node))
    dim = dimension(node, len(layout))
    if batches(layout[dim]):
        return SELECTS
    return Rowwise(Several((*layout[:dim], *layout[dim + 1 :]) for _ in node.meta["val"]))


def element(node: fx.Node, layouts: Sequence[Layout]) -> Rowwise | Mixes:
    """One of several results."""
    return Rowwise(layouts[cast(int, node.args[1])])


def _cat(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    parts = cast(list[fx.Node], node.args[0])
    rank = len(sizes_of(node))
    dim = dimension(node, rank)
    if any(len(of(part)) != rank for part in parts):
        return Mixes("cat of an empty tensor of another rank")
    axes = [joined(of(part)[other] for part in parts) if other != dim else () for other in range(rank)]
    along = _joined_along([of(part)[dim] for part in parts])
    if along is None or None in axes:
        return MEETS
    result = replaced(cast(Layout, tuple(axes)), dim, along)
    return Rowwise(result, {part: fitted(of(part), replaced(result, dim, of(part)[dim])) for part in parts})


def _joined_along(entries: Sequence[Axis]) -> Axis | None:
    """Axes one behind the other: all of them with the batch around as much, or all without."""
    if not any(map(batches, entries)):
        return plain(sum(map(extent, entries)))
    if not all(map(batches, entries)) or len({_inner(entry) for entry in entries}) != 1:
        return None
    outer = sum(cast(Any, quotient(extent(entry), _run(entry))) for entry in entries)
    return axis(Part(Kind.PLAIN, outer), *_inner(entries[0]))


def _stack(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    parts = cast(list[fx.Node], node.args[0])
    dim = dimension(node, len(sizes_of(node)))
    common = broadcast([of(part) for part in parts], len(sizes_of(node)) - 1)
    if common is None:
        return MEETS
    result = (*common[:dim], plain(len(parts)), *common[dim:])
    return Rowwise(result, {part: fitted(of(part), common) for part in parts})


def _index_select(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    source, index = _source(node), cast(fx.Node, node.args[2])
    layout = of(source)
    dim = dimension(node, len(layout))
    if batches(layout[dim]) or not without_elements([index], of):
        return SELECTS
    return Rowwise(replaced(layout, dim, plain(sizes_of(node)[dim])))


def _embedding(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    table, index = cast(list[fx.Node], node.args[:2])
    return Rowwise((*of(index), plain(sizes_of(node)[-1]))) if without_elements([table], of) else SELECTS


def _repeat(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    layout, counts = of(_source(node)), list(map(size_argument, argument(node, "repeats")))
    before = ((),) * (len(counts) - len(layout)) + layout
    return Rowwise(tuple(_times(entry, count, outside=True) for entry, count in zip(before, counts, strict=True)))


def _interleave(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    layout, dim = of(_source(node)), argument(node, "dim")
    if (dim is None and len(layout) != 1) or argument(node, "output_size") is not None:
        return Mixes("repeat_interleave without a dimension, or with a size for its result")
    dim = int(dim or 0) % len(layout)
    count = size_argument(argument(node, "repeats"))
    return Rowwise(replaced(layout, dim, _times(layout[dim], count, outside=False)))


def _times(of: Axis, count: Size, *, outside: bool) -> Axis:
    """An axis repeated as a whole, ``outside``, or value by value."""
    if extent(of) == 1 or is_same(of):
        return same(product([count, extent(of)]))
    return axis(Part(Kind.PLAIN, count), *of) if outside else axis(*of, Part(Kind.PLAIN, count))


def _expand(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    layout, result = of(_source(node)), sizes_of(node)
    new = len(result) - len(layout)
    pairs = list(zip(((),) * new + layout, result, strict=True))
    axes = tuple(same(whole) if extent(entry) == 1 else entry for entry, whole in pairs)
    given = cast(Sequence[Any], node.args[1])
    return _with(axes, node, [-1 if batches(entry) else size for entry, size in zip(axes, given, strict=True)])


MOVING: dict[Any, Rule] = by_operator(
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
        Family.REPEAT: _repeat,
        Family.INTERLEAVE: _interleave,
        Family.EXPAND: _expand,
    }
)
