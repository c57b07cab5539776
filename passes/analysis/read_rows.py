"""Which rows of every value anything reads: a slice at the end of a chain leaves the rest of all of it unread.

Read backwards from what is returned. An axis is asked for as a whole, or as one span of its values; what lies between
two spans that are read counts as read. Padding that is cut off again and positions whose prediction is dropped are such
rows: of what leads to them alone, row by row, no more than the span has to be computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.axes.attention import dialect_of
from lightint_compile.passes.analysis.axes.movement import Alike, Along, Joined, Movement, Padded, Range, Ref, Way
from lightint_compile.passes.analysis.axes.table import movement_of
from lightint_compile.passes.ir.effects import is_pure
from lightint_compile.passes.ir.fake_values import Size, shape_of, size_of
from lightint_compile.passes.ir.memory_sharing import is_write
from lightint_compile.passes.ir.node_queries import is_element
from lightint_compile.passes.ir.op_arguments import rank_of, sizes_of, tensors
from lightint_compile.passes.ir.op_families import Family, takes_rows
from lightint_compile.passes.ir.program import fake_mode_of, tensor_of
from lightint_compile.passes.ir.size_conditions import SizeOrder
from lightint_compile.passes.ir.sizes import groups, product, quotient, same

aten = torch.ops.aten

Span: TypeAlias = tuple[Size, Size] | None
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


def needs_of(graph: fx.Graph, is_computable: Callable[[Size], bool]) -> dict[fx.Node, Need]:
    """What has to be computed, for every call of which less will do, and for every one that reads less.

    Args:
        is_computable: whether a size can be the end of a span: a rewrite has to make it.
    """
    wanted = _Wanted(SizeOrder(fake_mode_of(graph.nodes).shape_env), is_computable)
    found: dict[fx.Node, Need] = {}
    for node in reversed(graph.nodes):
        if is_element(node):
            wanted.add(node.all_input_nodes[0], wanted.get(node))
            continue
        if node not in wanted and node.op != "output" and is_pure(node) and not is_write(node):
            continue  # nothing reads it
        need = _need(node, wanted[node], wanted) if node in wanted else None
        if need is not None and (need.is_narrow or need.reads_less):
            found[node] = need
        read = need.operands if need is not None else {}
        for source in node.all_input_nodes:
            if need is None or source in read or tensor_of(source) is None:
                wanted.add(source, read.get(source, _all(source)))
    return found


class _Wanted(dict[fx.Node, Rows]):
    """What is read of every value, as far as its readers are known."""

    def __init__(self, order: SizeOrder, is_computable: Callable[[Size], bool]) -> None:
        super().__init__()
        self.order, self._is_computable = order, is_computable

    def may_be(self, *spans: Span) -> bool:
        """Whether all ends of spans can be computed."""
        return all(self._is_computable(end) for span in spans if span is not None for end in span)

    def add(self, node: fx.Node, rows: Rows | None) -> None:
        """Note what one more reader reads."""
        if rows is None:
            return
        before = self.get(node)
        fits = before is not None and len(before) == len(rows)
        self[node] = rows if before is None else tuple(map(self._hull, before, rows)) if fits else ()

    def _hull(self, one: Span, other: Span) -> Span:
        if one is None or other is None:
            return None
        low, high = self.order.least(one[0], other[0]), self.order.most(one[1], other[1])
        return None if low is None or high is None else (low, high)


def _all(node: fx.Node) -> Rows:
    return (None,) * rank_of(node) if tensor_of(node) is not None else ()


def _need(node: fx.Node, wanted: Rows, all_wanted: _Wanted) -> Need | None:
    """What a call needs for the rows that are wanted of it; ``None`` for all that it is given."""
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "aten":
        return None
    if not any(wanted) and node.target is not aten.slice.Tensor:
        return None  # all of it is computed, from all that it is given
    if not is_pure(node) or is_write(node) or node.target is aten.squeeze.default:
        return None  # a squeeze of every axis of one would drop those that become one
    if dialect_of(node) is not None:
        wanted = (*wanted[:-1], None)  # the fast kernels of attention have one width for query, key and value
    movement = movement_of(node)
    shapes = _shapes(node)
    if movement is None or any(len(shape) != len(wanted) for shape in shapes):
        return None
    if movement.regroups is not None:
        return _regrouped(movement.regroups, shapes[0], wanted)
    if node.target in _SIZED and not all(isinstance(size, int) for size in shapes[0]):
        return None
    return _Following(node, movement, shapes, wanted, all_wanted).need()


def _shapes(node: fx.Node) -> list[tuple[Size, ...]]:
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else (value,)
    return [shape_of(each) if isinstance(each, torch.Tensor) else () for each in values]


class _Following:
    """One call that is not a view of other axes: every axis of its result by its way."""

    def __init__(
        self,
        node: fx.Node,
        movement: Movement,
        shapes: Sequence[tuple[Size, ...]],
        wanted: Rows,
        all_wanted: _Wanted,
    ) -> None:
        self._node, self._movement, self._shapes, self._wanted = node, movement, shapes, wanted
        self._all = all_wanted
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
        if not self._fits or (span is not None and not takes_rows(self._node.target, _minus(span[1], span[0]))):
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
        span = wanted or (0, size)
        wanted = None if span == (0, size) else wanted
        match way:
            case Along(refs):
                return self._along(refs, size, wanted)
            case Alike() if self._node.target in _SIZED:
                return wanted
            case Range(ref, start, 1) if self._node.target is aten.slice.Tensor:
                read = size_of(start + span[0]), size_of(start + span[1])
                if not self._all.may_be(read):
                    return None
                self._ask(ref, read)
                return wanted
            case Range(ref, int(start), int(step)) if self._node.target is aten.slice.Tensor and _is_plain(span):
                self._ask(ref, (start + span[0] * step, start + (span[1] - 1) * step + 1))
                return wanted
            case Joined(refs) if wanted is not None:
                return self._joined(refs, wanted)
            case Padded(ref, int(before), int(after)) if min(before, after) >= 0 and wanted is not None:
                return self._padded(ref, before, after, axis, wanted)
            case _:
                return None

    def _padded(self, ref: Ref, before: int, after: int, axis: int, wanted: tuple[Size, Size]) -> Span:
        size = self._shapes[0][axis]
        if not (isinstance(size, int) and _is_plain(wanted)):
            return None
        inside = max(int(wanted[0]) - before, 0), min(int(wanted[1]) - before, size - before - after)
        self._fits &= inside[0] < inside[1]
        # What is padded is read along this axis alone.
        self._whole.discard(ref)
        self._ask(ref, inside)
        return wanted

    def _along(self, refs: Sequence[Ref], size: Size, wanted: Span) -> Span:
        if wanted is None or any(ref in self._whole for ref in refs):
            return None
        for ref in refs:
            if same(sizes_of(ref.node)[ref.axis], size):
                self._ask(ref, wanted)
        return wanted

    def _joined(self, refs: Sequence[Ref], wanted: tuple[Size, Size]) -> Span:
        lengths = [sizes_of(ref.node)[ref.axis] for ref in refs]
        found = parts(lengths, wanted, self._all.order)
        if len({ref.node for ref in refs}) < len(refs) or found is None or not self._all.may_be(*found):
            return None
        for ref, span in zip(refs, found, strict=True):
            if span is None:
                self._unread.add(ref.node)
            else:
                self._ask(ref, span)
        return wanted

    def _ask(self, ref: Ref, span: tuple[Size, Size]) -> None:
        """Note what is read of an operand's axis; the same axis read in two ways does not fit."""
        asked = None if span == (0, sizes_of(ref.node)[ref.axis]) else span
        self._fits &= self._asked.setdefault(ref, asked) == asked


def _minus(end: Size, start: Size) -> Size:
    return size_of(end - start)


def _is_plain(span: tuple[Size, Size]) -> bool:
    return isinstance(span[0], int) and isinstance(span[1], int)


def parts(lengths: Sequence[Size], wanted: tuple[Size, Size], order: SizeOrder) -> list[Span] | None:
    """For each of several axes one behind the other what is wanted of it, ``None`` for nothing.

    ``None`` altogether where that cannot be told.
    """
    first: Size = 0
    found: list[Span] = []
    for length in lengths:
        low = order.most(_minus(wanted[0], first), 0)
        high = order.least(_minus(wanted[1], first), length)
        if low is None or high is None:
            return None
        if order.is_less(low, high):
            found.append((low, high))
        elif order.at_most(high, low):
            found.append(None)
        else:
            return None
        first = size_of(first + length)
    return found


# --- views -----------------------------------------------------------------------------------------------------------


def _regrouped(source: fx.Node, shape: tuple[Size, ...], wanted: Rows) -> Need | None:
    """A view: rows of the leading axis of what is cut or joined, as far as they are whole rows on both sides."""
    before = sizes_of(source)
    if 0 in (*before, *shape):
        return None
    rows: list[Span] = [None] * len(shape)
    read: list[Span] = [None] * len(before)
    for theirs, ours in groups(before, shape):
        own, other = _leading(ours, shape), _leading(theirs, before)
        if own is None or other is None or (span := wanted[own[0]]) is None:
            continue
        (axis, unit), (place, step) = own, other
        taken = _whole_rows(span, unit, step)
        if taken is not None and taken[0] != (0, shape[axis]):
            rows[axis], read[place] = taken
    return Need(tuple(rows), {source: tuple(read)})


def _whole_rows(span: tuple[Size, Size], unit: int, step: int) -> tuple[tuple[Size, Size], tuple[Size, Size]] | None:
    """Rows of ``unit`` values and rows of ``step`` values that are whole on both sides and hold the span of the former.

    ``None`` where that cannot be told of a size.
    """
    least = math.lcm(unit, step)
    if _is_plain(span):
        low, high = int(span[0]) * unit // least * least, -(-int(span[1]) * unit // least) * least
        return (low // unit, high // unit), (low // step, high // step)
    ends = [quotient(size_of(end * unit), step) for end in span]
    return None if least != unit or None in ends else (span, (ends[0], ends[1]))  # type: ignore[return-value]


def _leading(axes: range, shape: Sequence[Size]) -> tuple[int, int] | None:
    """The first axis of a group that has more than one value, and how many values lie within each of them.

    ``None`` where that number is symbolic.
    """
    for axis in axes:
        if shape[axis] != 1:
            inner = product(shape[axis + 1 : axes.stop])
            return (axis, inner) if isinstance(inner, int) else None
    return None
