"""How a call is made for one element of a batch alone, or why elements meet in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.fx as fx

from lightint_compile.passes.analysis.axes.factors import (
    Kind,
    Layout,
    holds,
    regrouped,
    runs,
    without,
)
from lightint_compile.passes.analysis.axes.movement import Movement, Range
from lightint_compile.passes.analysis.axes.moving import operand, squeezable
from lightint_compile.passes.analysis.axes.plans import (
    MEETS,
    PICKS,
    Blocked,
    Layouts,
    Plan,
    operands_of,
    read_along,
    results_of,
)
from lightint_compile.passes.analysis.axes.table import movement_of
from lightint_compile.passes.ir.fake_values import Size
from lightint_compile.passes.ir.op_arguments import argument, arguments, sizes_of, takes
from lightint_compile.passes.ir.op_families import Family, takes_rows
from lightint_compile.passes.ir.sizes import product


def rowwise(node: fx.Node, of: Layouts) -> Plan | Blocked | None:
    """How to make a call for one element; ``None`` where the table of movements says nothing."""
    movement = movement_of(node)
    if movement is None:
        return None
    if movement.regroups is not None:
        return _view(node, of(movement.regroups))
    for read, _ in read_along(movement, of, Kind.BATCH):
        return Blocked(read.how.format("the batch")) if read.how else MEETS
    results = results_of(node, movement, of)
    if isinstance(results, Blocked):
        return results
    operands = operands_of(movement, results, of, Kind.BATCH)
    args = _row_arguments(node, movement, results, of)
    if isinstance(args, Blocked):
        return args
    if not takes_rows(node.target, without(results[0][0], Kind.BATCH) if results[0] else 0):
        return _FEW
    return MEETS if operands is None else Plan(tuple(results), operands, args=args)


_FEW = Blocked("a product of 8-bit numbers has too few rows for one element")


# --- calls whose arguments are sizes ---------------------------------------------------------------------------------


def regroup(layout: Layout, shape: Sequence[Size]) -> Layout | None:
    """The layout of a view to ``shape``; ``None`` when it cuts the batch apart."""
    found = regrouped(layout, shape)
    return None if found is None else found[1]


def _view(node: fx.Node, before: Layout) -> Plan | Blocked:
    layout = regroup(before, sizes_of(node))
    if layout is None:
        return Blocked("the view cuts across the batch")
    name = next((name for name in ("shape", "size", "sizes") if takes(node, name)), None)
    if name is None:
        return Plan((layout,))  # a flatten says which axes
    given: Sequence[Any] = argument(node, name)
    first = argument(node, "dim") % len(before) if takes(node, "dim") else 0
    sizes = _row_sizes(given, layout[first : first + len(given)])
    args = (*node.args[: node.args.index(given)], sizes)
    return Blocked("several sizes of the view are not known") if sizes is None else Plan((layout,), args=args)


def _row_sizes(given: Sequence[Any], layout: Layout) -> list[Any] | None:
    """Size arguments for one element; ``None`` when two of them would have to be left to the operation."""
    open_before = -1 in given
    sizes: list[Any] = []
    for entry, size in zip(layout, given, strict=True):
        rows = without(entry, Kind.BATCH)
        whole = size == -1 or not holds(entry, Kind.BATCH)
        sizes.append(size if whole else rows if isinstance(rows, int) else -1)
    return sizes if sizes.count(-1) <= 1 or (open_before and sizes == list(given)) else None


def _row_arguments(
    node: fx.Node, movement: Movement, results: Sequence[Layout], of: Layouts
) -> tuple[Any, ...] | Blocked | None:
    """Arguments for one element where they are sizes of the batch; ``None`` where they are the node's own."""
    if node.target in Family.INTERLEAVE.value and argument(node, "output_size") is not None:
        return PICKS
    if node.target in Family.SQUEEZE.value and any(
        holds(of(operand(node))[dim], Kind.BATCH) for dim in squeezable(node)
    ):
        return PICKS
    if node.target in Family.EXPAND.value:
        pairs = zip(results[0], argument(node, "size"), strict=True)
        return (node.args[0], [-1 if holds(entry, Kind.BATCH) else size for entry, size in pairs])
    ranges = [
        way for way in movement.ways() if isinstance(way, Range) and holds(of(way.ref.node)[way.ref.axis], Kind.BATCH)
    ]
    if not ranges or results[0] == of(ranges[0].ref.node):
        return None
    dim = ranges[0].ref.axis
    rows = [without(layout[dim], Kind.BATCH) for layout in results]
    if node.target in Family.SPLIT.value:
        return _split_arguments(node, dim, rows)
    return _slice_arguments(node, ranges[0], rows[0], of) if node.target in Family.SLICE.value else PICKS


def _slice_arguments(node: fx.Node, way: Range, length: Size, of: Layouts) -> tuple[Any, ...] | Blocked:
    entry = of(way.ref.node)[way.ref.axis]
    before = runs(entry, way.start)
    start = None if before is None else product([before[0], without(before[1], Kind.BATCH)])
    if not isinstance(start, int) or not isinstance(length, int) or start < 0:
        return PICKS
    return (node.args[0], way.ref.axis, start, start + length)


def _split_arguments(node: fx.Node, dim: int, rows: Sequence[Size]) -> tuple[Any, ...] | Blocked | None:
    if not all(isinstance(size, int) for size in rows):
        return Blocked("a split of the batch into parts of unknown size")
    if "chunks" in arguments(node):
        return None if len(set(rows)) == 1 else PICKS
    sizes = node.args[1]
    if not takes(node, "split_size") and not takes(node, "split_sizes"):
        return PICKS
    return (node.args[0], list(rows) if isinstance(sizes, (list, tuple)) else rows[0], *node.args[2:])
