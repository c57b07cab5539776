"""Which rows of every value anything reads: a slice at the end of a chain leaves the rest of all of it unread.

Read backwards from what is returned. An axis is asked for as a whole, or as one span of its values; what lies between
two spans that are read counts as read. Padding that is cut off again and positions whose prediction is dropped are such
rows: of what leads to them alone, row by row, no more than the span has to be computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.axes.movement import Alike, Along, Joined, Movement, Padded, Range, Ref, Way
from lightint_compile.passes.analysis.axes.table import movement_of
from lightint_compile.passes.ir.effects import is_pure
from lightint_compile.passes.ir.fake_values import Size, shape_of
from lightint_compile.passes.ir.memory_sharing import is_write
from lightint_compile.passes.ir.node_queries import is_element
from lightint_compile.passes.ir.op_arguments import rank_of, sizes_of, tensors
from lightint_compile.passes.ir.op_families import Family, takes_rows
from lightint_compile.passes.ir.program import tensor_of
from lightint_compile.passes.ir.sizes import groups

aten = torch.ops.aten

Span: TypeAlias = tuple[int, int] | None
"""Values from the first on and before the second; ``None`` for all of an axis."""

Rows: TypeAlias = tuple[Span, ...]
"""What of each axis."""

_SIZED = frozenset(target for family in (Family.VIEW, Family.EXPAND, Family.FILL) for target in family.value)
"""Calls whose arguments are the sizes of their result."""


@dataclass(frozen=True)
class Need:
    """What a call computes, ``rows`` of its result (of each of its results), and what it reads of each operand.

    An operand that is left out is not read at all.
    """

    rows: Rows
    operands: dict[fx.Node, Rows] = field(default_factory=dict)

    @property
    def is_narrow(self) -> bool:
        """Whether it computes less than the call does."""
        return any(self.rows)

    @property
    def reads_less(self) -> bool:
        """Whether it reads less of anything."""
        return any(any(rows) for rows in self.operands.values())


def needs_of(graph: fx.Graph) -> dict[fx.Node, Need]:
    """What has to be computed, for every call of which less will do, and for every one that reads less."""
    wanted: dict[fx.Node, Rows] = {}
    found: dict[fx.Node, Need] = {}
    for node in reversed(graph.nodes):
        if is_element(node):
            _want(wanted, node.all_input_nodes[0], wanted.get(node))
            continue
        if node not in wanted and node.op != "output" and is_pure(node) and not is_write(node):
            continue  # nothing reads it
        need = _need(node, wanted[node]) if node in wanted else None
        if need is not None and (need.is_narrow or need.reads_less):
            found[node] = need
        read = need.operands if need is not None else {}
        for source in node.all_input_nodes:
            if need is None or source in read or tensor_of(source) is None:
                _want(wanted, source, read.get(source, _all(source)))
    return found


def _want(wanted: dict[fx.Node, Rows], node: fx.Node, rows: Rows | None) -> None:
    if rows is None:
        return
    before = wanted.get(node)
    same = before is not None and len(before) == len(rows)
    wanted[node] = rows if before is None else tuple(map(_hull, before, rows)) if same else ()


def _hull(one: Span, other: Span) -> Span:
    return None if one is None or other is None else (min(one[0], other[0]), max(one[1], other[1]))


def _all(node: fx.Node) -> Rows:
    return (None,) * rank_of(node) if tensor_of(node) is not None else ()


def _need(node: fx.Node, wanted: Rows) -> Need | None:
    """What a call needs for the rows that are wanted of it; ``None`` for all that it is given."""
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "aten":
        return None
    if not is_pure(node) or is_write(node) or node.target is aten.squeeze.default:
        return None  # a squeeze of every axis of one would drop those that become one
    movement = movement_of(node)
    shapes = _shapes(node)
    if movement is None or any(len(shape) != len(wanted) for shape in shapes):
        return None
    if movement.regroups is not None:
        return _regrouped(movement.regroups, shapes[0], wanted)
    if node.target in _SIZED and not all(isinstance(size, int) for size in shapes[0]):
        return None
    return _Following(node, movement, shapes, wanted).need()


def _shapes(node: fx.Node) -> list[tuple[Size, ...]]:
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else (value,)
    return [shape_of(each) if isinstance(each, torch.Tensor) else () for each in values]


class _Following:
    """One call that is not a view of other axes: every axis of its result by its way."""

    def __init__(self, node: fx.Node, movement: Movement, shapes: Sequence[tuple[Size, ...]], wanted: Rows) -> None:
        self._node, self._movement, self._shapes, self._wanted = node, movement, shapes, wanted
        self._whole = {ref for read in movement.reads for ref in read.refs}
        self._asked: dict[Ref, Span] = {}
        self._unread: set[fx.Node] = set()
        self._fits = True

    def need(self) -> Need | None:
        """What is computed, and what of the operands; ``None`` where an operand would be read in two ways."""
        rows: list[Span] = []
        for axis, wanted in enumerate(self._wanted):
            ways = {output[axis] for output in self._movement.outputs}
            rows.append(self._axis(ways.pop(), axis, wanted) if len(ways) == 1 else None)
        span = rows[0] if rows else None
        if not self._fits or (span is not None and not takes_rows(self._node.target, span[1] - span[0])):
            return None
        operands = {
            source: tuple(self._asked.get(Ref(source, axis)) for axis in range(rank_of(source)))
            for source in tensors(self._node)
            if source not in self._unread
        }
        return Need(tuple(rows), operands)

    def _axis(self, way: Way, axis: int, wanted: Span) -> Span:
        """What is computed of an axis; what it takes of the operands is noted."""
        size = self._shapes[0][axis]
        if not isinstance(size, int):
            return None
        span = wanted or (0, size)
        wanted = None if span == (0, size) else wanted
        match way:
            case Along(refs):
                return self._along(refs, size, wanted)
            case Alike() if self._node.target in _SIZED:
                return wanted
            case Range(ref, int(start), int(step)) if self._node.target is aten.slice.Tensor:
                self._ask(ref, (start + span[0] * step, start + (span[1] - 1) * step + 1))
                return wanted
            case Joined(refs) if wanted is not None:
                return self._joined(refs, wanted)
            case Padded(ref, int(before), int(after)) if min(before, after) >= 0 and wanted is not None:
                length = size - before - after
                inside = max(wanted[0] - before, 0), min(wanted[1] - before, length)
                self._fits &= inside[0] < inside[1]
                # What is padded is read along this axis alone.
                self._whole.discard(ref)
                self._ask(ref, inside)
                return wanted
            case _:
                return None

    def _along(self, refs: Sequence[Ref], size: int, wanted: Span) -> Span:
        if wanted is None or any(ref in self._whole for ref in refs):
            return None
        for ref in refs:
            if sizes_of(ref.node)[ref.axis] == size:
                self._ask(ref, wanted)
        return wanted

    def _joined(self, refs: Sequence[Ref], wanted: tuple[int, int]) -> Span:
        lengths = [sizes_of(ref.node)[ref.axis] for ref in refs]
        if len({ref.node for ref in refs}) < len(refs) or not all(isinstance(length, int) for length in lengths):
            return None
        for ref, span in parts(lengths, wanted):  # type: ignore[arg-type]
            if span is None:
                self._unread.add(refs[ref].node)
            else:
                self._ask(refs[ref], span)
        return wanted

    def _ask(self, ref: Ref, span: tuple[int, int]) -> None:
        """Note what is read of an operand's axis; the same axis read in two ways does not fit."""
        asked = None if span == (0, sizes_of(ref.node)[ref.axis]) else span
        self._fits &= self._asked.setdefault(ref, asked) == asked


def parts(lengths: Sequence[int], wanted: tuple[int, int]) -> Iterator[tuple[int, tuple[int, int] | None]]:
    """For each of several axes one behind the other what is wanted of it; ``None`` for nothing."""
    first = 0
    for number, length in enumerate(lengths):
        low, high = max(wanted[0] - first, 0), min(wanted[1] - first, length)
        yield number, (low, high) if low < high else None
        first += length


# --- views -----------------------------------------------------------------------------------------------------------


def _regrouped(source: fx.Node, shape: tuple[Size, ...], wanted: Rows) -> Need | None:
    """A view: rows of the leading axis of what is cut or joined, as far as they are whole rows on both sides."""
    before = sizes_of(source)
    if not all(isinstance(size, int) and size for size in (*before, *shape)):
        return None
    rows: list[Span] = [None] * len(shape)
    read: list[Span] = [None] * len(before)
    for theirs, ours in groups(before, shape):
        own, other = _leading(ours, shape), _leading(theirs, before)  # type: ignore[arg-type]
        if own is None or other is None or (span := wanted[own[0]]) is None:
            continue
        (axis, unit), (place, step) = own, other
        least = math.lcm(unit, step)
        low, high = span[0] * unit // least * least, -(-span[1] * unit // least) * least
        if (low, high) != (0, unit * int(shape[axis])):
            rows[axis], read[place] = (low // unit, high // unit), (low // step, high // step)
    return Need(tuple(rows), {source: tuple(read)})


def _leading(axes: range, shape: Sequence[int]) -> tuple[int, int] | None:
    """The first axis of a group that has more than one value, and how many values lie within each of them."""
    for axis in axes:
        if shape[axis] != 1:
            return axis, math.prod(shape[axis + 1 : axes.stop])
    return None
