"""How the elements of a batch follow the movement of axes, and the arguments of a call for one element alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
from lightint_compile.passes.analysis.axes.moving import SELECTS, operand, refs_of
from lightint_compile.passes.analysis.axes.table import movement_of
from lightint_compile.passes.analysis.batch_elements.axes import (
    batches,
    inner,
    joined,
    joined_along,
    regroup,
    row_extent,
    runs,
    shortened,
    skeleton,
)
from lightint_compile.passes.ir.fake_values import Size
from lightint_compile.passes.ir.op_arguments import argument, arguments, dimensions, sizes_of, takes
from lightint_compile.passes.ir.op_families import Family
from lightint_compile.passes.ir.sizes import product


class Several(tuple[Layout, ...]):
    """The layouts of an operation with several results."""


@dataclass(frozen=True)
class Rowwise:
    """An operation whose results for one element are made from that element's operands alone.

    Attributes:
        layout: of the result; one for each of several results.
        operands: the layouts in which operands are read that are the same for all elements along some axis.
        args: the arguments for one element, as far as they are not the node's own.
    """

    layout: Layout | Several
    operands: Mapping[fx.Node, Layout] = field(default_factory=dict)
    args: tuple[Any, ...] | None = None

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """Those of all results."""
        return self.layout if isinstance(self.layout, Several) else (self.layout,)


@dataclass(frozen=True)
class Mixes:
    """Why an operation cannot be done for one element alone."""

    reason: str


Layouts = Callable[[fx.Node], Layout]
"""The layout of a tensor node."""

MEETS = Mixes("elements of the batch meet one another, or values that belong to no element")
_PICKS = Mixes(SELECTS.format("the batch"))


def rowwise(node: fx.Node, of: Layouts) -> Rowwise | Mixes | None:
    """What a call does to the elements of a batch; ``None`` where the table of movements says nothing."""
    movement = movement_of(node)
    if movement is None:
        return None
    if movement.regroups is not None:
        return _view(node, of(movement.regroups))
    for read in movement.reads:
        if any(batches(of(ref.node)[ref.axis]) for ref in read.refs):
            return Mixes(read.how.format("the batch")) if read.how else MEETS
    if _is_bound_to_sizes(node, of):
        return _PICKS
    found = _outputs(node, movement, of)
    if isinstance(found, Mixes):
        return found
    args = _row_arguments(node, movement, found, of)
    if isinstance(args, Mixes):
        return args
    meets = any(len(refs_of(way)) > 1 for way in movement.ways())
    operands = operand_layouts(_demands(movement, found, of), of) if meets else {}
    several = isinstance(node.meta["val"], (tuple, list))
    return MEETS if operands is None else Rowwise(Several(found) if several else found[0], operands, args)


def _outputs(node: fx.Node, movement: Movement, of: Layouts) -> list[Layout] | Mixes:
    found = [[_carried(way, size, of) for way, size in output] for output in movement.sized(node)]
    why = next((entry for layout in found for entry in layout if isinstance(entry, Mixes)), None)
    return why or [tuple(entry for entry in layout if not isinstance(entry, Mixes)) for layout in found]


def _carried(way: Way, size: Size, of: Layouts) -> Axis | Mixes:
    """Where elements lie along an axis of the result; they are nowhere on axes that a call reads as a whole."""
    match way:
        case Along((ref,)):
            return of(ref.node)[ref.axis]
        case Along(refs):
            found = joined(of(ref.node)[ref.axis] for ref in refs)
            return MEETS if found is None else found
        case Joined(refs):
            found = joined_along([of(ref.node)[ref.axis] for ref in refs])
            return MEETS if found is None else found
        case Alike(like):
            entry = () if like is None else of(like.node)[like.axis]
            return skeleton(entry) if batches(entry) else same(size)
        case Times(ref, count, outside):
            entry = () if ref is None else of(ref.node)[ref.axis]
            unchanging = extent(entry) == 1 or is_same(entry)
            return same(size) if unchanging else times(entry, count, Kind.PLAIN, outside=outside)
        case Range():
            return _ranged(way, size, of)
        case Picked(_, index) if batches(of(index.node)[index.axis]):
            return _PICKS
        case _:
            return plain(size)


def _ranged(way: Range, size: Size, of: Layouts) -> Axis | Mixes:
    """A range of an axis; of one with the batch all of it, or whole runs around the batch."""
    entry = of(way.ref.node)[way.ref.axis]
    if not batches(entry):
        return same(size) if is_same(entry) else plain(size)
    if way.step == 1 and size == extent(entry):
        return entry
    found = shortened(entry, size)
    return _PICKS if found is None or way.step != 1 or runs(entry, way.start) is None else found


def _demands(movement: Movement, results: Sequence[Layout], of: Layouts) -> Iterator[tuple[Ref, Axis]]:
    """What operands are read as that meet elements of the batch, and are the same for all of them."""
    for ways, layout in zip(movement.outputs, results, strict=True):
        for way, entry in zip(ways, layout, strict=True):
            for ref in refs_of(way):
                own = of(ref.node)[ref.axis]
                yield ref, entry if batches(entry) and extent(own) != 1 else own


# --- calls whose arguments are sizes ---------------------------------------------------------------------------------


def _is_bound_to_sizes(node: fx.Node, of: Layouts) -> bool:
    """Whether one element alone would lose the axis of the batch, or have it beside a size that is given."""
    if node.target in Family.INTERLEAVE.value:
        return argument(node, "output_size") is not None
    if node.target not in Family.SQUEEZE.value:
        return False
    layout = of(operand(node))
    dims = dimensions(node, len(layout)) if takes(node, "dim") else range(len(layout))
    return any(batches(layout[dim]) for dim in dims)


def _view(node: fx.Node, before: Layout) -> Rowwise | Mixes:
    layout = regroup(before, sizes_of(node))
    if layout is None:
        return Mixes("the view cuts across the batch")
    name = "shape" if takes(node, "shape") else "size" if takes(node, "size") else "sizes"
    if not takes(node, name):
        return Rowwise(layout)  # a flatten says which axes
    given: Sequence[Any] = argument(node, name)
    first = argument(node, "dim") % len(before) if takes(node, "dim") else 0
    sizes = _row_sizes(given, layout[first : first + len(given)])
    args = (*node.args[: node.args.index(given)], sizes)
    return Mixes("several sizes of the view are not known") if sizes is None else Rowwise(layout, args=args)


def _row_sizes(given: Sequence[Any], layout: Layout) -> list[Any] | None:
    """Size arguments for one element; ``None`` when two of them would have to be left to the operation."""
    open_before = -1 in given
    sizes: list[Any] = []
    for entry, size in zip(layout, given, strict=True):
        rows = row_extent(entry)
        sizes.append(size if not batches(entry) or size == -1 else rows if isinstance(rows, int) else -1)
    return sizes if sizes.count(-1) <= 1 or (open_before and sizes == list(given)) else None


def _row_arguments(
    node: fx.Node, movement: Movement, results: Sequence[Layout], of: Layouts
) -> tuple[Any, ...] | Mixes | None:
    """Arguments for one element where they are sizes of the batch; ``None`` where they are the node's own."""
    if node.target in Family.EXPAND.value:
        sizes = [-1 if batches(e) else size for e, size in zip(results[0], argument(node, "size"), strict=True)]
        return (node.args[0], sizes)
    ranges = [way for way in movement.ways() if isinstance(way, Range) and batches(of(way.ref.node)[way.ref.axis])]
    if not ranges or results[0] == of(ranges[0].ref.node):
        return None
    dim = ranges[0].ref.axis
    rows = [row_extent(layout[dim]) for layout in results]
    if node.target in Family.SPLIT.value:
        return _split_arguments(node, dim, rows)
    if node.target not in Family.SLICE.value:
        return _PICKS
    return _slice_arguments(node, ranges[0], rows[0], of)


def _slice_arguments(node: fx.Node, way: Range, length: Size, of: Layouts) -> tuple[Any, ...] | Mixes:
    entry = of(way.ref.node)[way.ref.axis]
    before = runs(entry, way.start)
    start = None if before is None else product([before, row_extent(inner(entry))])
    if not isinstance(start, int) or not isinstance(length, int) or start < 0:
        return _PICKS
    return (node.args[0], way.ref.axis, start, start + length)


def _split_arguments(node: fx.Node, dim: int, rows: Sequence[Size]) -> tuple[Any, ...] | Mixes | None:
    if not all(isinstance(size, int) for size in rows):
        return Mixes("a split of the batch into parts of unknown size")
    if "chunks" in arguments(node):
        return None if len(set(rows)) == 1 else _PICKS
    sizes = node.args[1]
    if not takes(node, "split_size") and not takes(node, "split_sizes"):
        return _PICKS
    return (node.args[0], list(rows) if isinstance(sizes, (list, tuple)) else rows[0], *node.args[2:])
