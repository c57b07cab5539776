"""How one call treats axes of which some values belong to entries that may be left out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch.fx as fx

from lightint_compile.passes.adaptive_context.kept_entries import sizes_in_calls
from lightint_compile.passes.adaptive_context.kept_entries.lengths import Lengths
from lightint_compile.passes.adaptive_context.kept_entries.pulling import Pulling
from lightint_compile.passes.adaptive_context.kept_entries.relation import stands_for
from lightint_compile.passes.adaptive_context.kept_entries.runs import (
    Axis,
    Part,
    Runs,
    extent,
    is_free,
    joined,
    part,
    regrouped,
    scaled,
)
from lightint_compile.passes.analysis.axes.attention import dialect_of
from lightint_compile.passes.analysis.axes.movement import (
    Alike,
    Along,
    Joined,
    Movement,
    New,
    Padded,
    Picked,
    Range,
    Ref,
    Times,
    Way,
    Window,
)
from lightint_compile.passes.ir.fake_values import Size, shape_of, size_of
from lightint_compile.passes.ir.op_arguments import argument, arguments, results_in
from lightint_compile.passes.ir.op_families import Family
from lightint_compile.passes.ir.program import tensor_of


class Refused(Exception):  # noqa: N818 - an answer, no error
    """Why a graph cannot be restricted.

    Attributes:
        node: where.
    """

    def __init__(self, node: fx.Node, why: str) -> None:
        super().__init__(why)
        self.node = node


class Known(Protocol):
    """What is known of the operands of a call."""

    @property
    def count(self) -> int:
        """Entries there are."""
        ...

    def form(self, ref: Ref) -> Runs | None:
        """The runs of an operand's axis."""
        ...

    def axis(self, ref: Ref) -> Axis:
        """The runs of an operand's axis, or its size."""
        ...

    def size(self, ref: Ref) -> Size:
        """The length of an operand's axis with all entries."""
        ...

    def shape(self, node: fx.Node) -> tuple[Size, ...]:
        """The sizes of a tensor with all entries."""
        ...


class Call:
    """How one call treats axes with entries.

    Args:
        owner: what is known of its operands.
    """

    def __init__(self, owner: Known, node: fx.Node, movement: Movement) -> None:
        self._owner, self._node, self._movement = owner, node, movement
        self._needs: dict[fx.Node, tuple[int, Runs]] = {}
        self._parts: list[Part] = []
        self._followed: set[Ref] = set()

    def outputs(self) -> list[list[Runs | None]]:
        """The runs of every axis of every result."""
        if self._movement.regroups is not None:
            return [self._viewed(self._movement.regroups)]
        found = [[self._along(way, axis) for axis, way in enumerate(output)] for output in self._movement.outputs]
        self._choose()
        self._read()
        return found

    def operands(self, pulling: Pulling) -> dict[fx.Node, fx.Node]:
        """The operands that have to be restricted, as they are then."""
        return {operand: pulling.pull(operand, axis, runs, self._node) for operand, (axis, runs) in self._needs.items()}

    def tell_sizes(self, outputs: list[list[Runs | None]], lengths: Lengths) -> None:
        """Change what the call is told of sizes."""
        node = self._node
        shape = shape_of(tensor) if (tensor := tensor_of(node)) is not None else ()
        if self._movement.regroups is not None:
            axes = [runs or size for runs, size in zip(outputs[0], shape, strict=True)]
            sizes_in_calls.viewed(node, axes, lengths)
        elif node.target in Family.EXPAND.value:
            sizes_in_calls.expanded(node, outputs[0], lengths)
        elif node.target in Family.INTERLEAVE.value:
            sizes_in_calls.uncounted(node)
        elif node.target in Family.SELECT.value and self._parts:
            sizes_in_calls.selected(node, self._parts[0].start, lengths)
        elif node.target in Family.SPLIT.value and self._parts:
            sizes_in_calls.split(node, [each.runs for each in self._parts], lengths)
        elif self._parts:
            sizes_in_calls.ranged(node, self._parts[0], lengths)

    def _viewed(self, source: fx.Node) -> list[Runs | None]:
        axes = [self._owner.axis(Ref(source, axis)) for axis in range(len(self._owner.shape(source)))]
        found = regrouped(axes, self._owner.shape(self._node), self._owner.count)
        if found is None:
            raise self._refused("cuts its operand beside the frames of the memory")
        return [each if isinstance(each, Runs) else None for each in found]

    def _along(self, way: Way, axis: int) -> Runs | None:
        """The runs of an axis of the result."""
        refs = _refs(way)
        if isinstance(way, Along):
            return self._met(way.refs)
        if not any(self._owner.form(ref) for ref in refs):
            return None
        self._followed.update(refs)
        if isinstance(way, Joined):
            found = joined([self._owner.axis(ref) for ref in refs])
        elif isinstance(way, Range):
            found = self._part(way.ref, way.start, self._length(axis)) if way.step == 1 else None
        elif isinstance(way, Picked) and self._owner.form(way.ref) is None:
            found = self._owner.form(way.numbers)
        elif isinstance(way, Times):
            found = self._times(way)
        elif isinstance(way, Padded):
            found = self._padded(way)
        elif isinstance(way, Window):
            found = self._owner.form(way.ref) if self._is_window_of_one(way.ref) else None
        else:
            found = None
        if found is None:
            raise self._refused("does not treat the frames of the memory one by one")
        return None if is_free(found) else found

    def _met(self, refs: Iterable[Ref]) -> Runs | None:
        """The runs of axes that meet one by one: those without runs are restricted."""
        wide = [ref for ref in refs if self._owner.size(ref) != 1]
        known = [own for ref in wide if (own := self._owner.form(ref)) is not None]
        if not known:
            return None
        if any(own != known[0] for own in known):
            raise self._refused("meets frames of the memory in two orders")
        for ref in wide:
            if self._owner.form(ref) is None:
                self._need(ref, known[0])
        return known[0]

    def _need(self, ref: Ref, runs: Runs) -> None:
        if self._needs.setdefault(ref.node, (ref.axis, runs)) != (ref.axis, runs):
            raise self._refused("meets the frames of the memory on two axes of one operand")

    def _length(self, axis: int) -> Size:
        """The length of an axis of the result of which this is the part number ``len(self._parts)``."""
        return shape_of(results_in(self._node)[len(self._parts)])[axis]

    def _part(self, ref: Ref, start: Size, length: Size) -> Runs | None:
        own = self._owner.form(ref)
        assert own is not None
        found = part(own, start, size_of(start + length), self._owner.count)
        if found is None:
            return None
        self._parts.append(found)
        return found.runs

    def _times(self, way: Times) -> Runs | None:
        own = self._owner.form(way.ref) if way.ref is not None else None
        if own is None:
            return None
        return Runs(own.runs, own.outer * way.copies) if way.outside else scaled(own, way.copies)

    def _padded(self, way: Padded) -> Runs | None:
        own = self._owner.form(way.ref)
        around = way.before, way.after
        if own is None or not all(isinstance(each, int) and each >= 0 for each in around):
            return None
        return joined([way.before, own, way.after])

    def _is_window_of_one(self, ref: Ref) -> bool:
        """Whether a convolution treats every value along an axis by itself."""
        if self._node.target not in Family.CONVOLUTION.value or "transpose" in str(self._node.target):
            return False
        weight = tensor_of(argument(self._node, "weight"))
        assert weight is not None
        place = ref.axis - (len(self._owner.shape(ref.node)) - (weight.dim() - 2))
        stride, padding = (_entry(argument(self._node, name), place) for name in ("stride", "padding"))
        return place >= 0 and weight.shape[2 + place] == 1 and stride == 1 and padding == 0

    def _choose(self) -> None:
        """A value chosen along an axis with entries, which must be none of theirs."""
        for place, read in zip(self._movement.places, self._movement.reads * len(self._movement.places), strict=False):
            (ref,) = read.refs
            if self._owner.form(ref) is None:
                continue
            own = self._part(ref, place, 1)
            if own is None or not is_free(own) or len(self._movement.places) > 1:
                raise self._refused("takes one frame of the memory out of it")
            self._followed.add(ref)

    def _read(self) -> None:
        """Axes that every value needs all of: of keys alone, whose weights are spread over those that are left."""
        values = self._values()
        for read in self._movement.reads:
            known = [own for ref in read.refs if (own := self._owner.form(ref)) is not None]
            if values in read.refs:
                self._keys(read.refs, known)
            elif any(self._owner.form(ref) is not None and ref not in self._followed for ref in read.refs):
                raise self._refused("looks across the frames of the memory")
            elif any(self._needs.get(ref.node, (None,))[0] == ref.axis for ref in read.refs):
                raise self._refused("meets the frames of the memory in an operand that it reads across them besides")

    def _values(self) -> Ref | None:
        """The axis of an attention's value along which it is summed."""
        dialect = dialect_of(self._node)
        if dialect is None:
            return None
        value = arguments(self._node)[dialect.value]
        rank = len(self._owner.shape(value))
        return Ref(value, rank - 2 if dialect.order is None else dialect.order[-2])

    def _keys(self, refs: Iterable[Ref], known: list[Runs]) -> None:
        """Keys and values are restricted together; and with queries, where they stand for the same frames."""
        wide = [ref for ref in refs if self._owner.size(ref) != 1]
        if not known:
            known = [runs for runs in self._of_queries() if self._stand(wide, runs)]
        for ref in wide if known else ():
            own = self._owner.form(ref)
            if own is None:
                self._need(ref, known[0])
            elif own != known[0]:
                raise self._refused("attends to frames of the memory in two orders")

    def _of_queries(self) -> list[Runs]:
        return [runs for output in self._movement.outputs[:1] for way in output if (runs := self._row(way))]

    def _row(self, way: Way) -> Runs | None:
        refs = way.refs if isinstance(way, Along) else ()
        return next((own for ref in refs if (own := self._owner.form(ref)) is not None), None)

    def _stand(self, refs: list[Ref], runs: Runs) -> bool:
        count = self._owner.count
        alike = [self._owner.size(ref) == extent(runs, count) for ref in refs]
        return bool(refs) and all(alike) and any(stands_for(ref.node, ref.axis, runs, count) for ref in refs)

    def _refused(self, what: str) -> Refused:
        return Refused(self._node, f"{self._node.target} {what}")


def _refs(way: Way) -> tuple[Ref, ...]:
    """The axes of operands that a way names."""
    if isinstance(way, (Along, Joined)):
        return way.refs
    if isinstance(way, (New, Alike)):
        return () if isinstance(way, New) or way.like is None else (way.like,)
    named = (getattr(way, name, None) for name in ("ref", "numbers", "source"))
    return tuple(ref for ref in named if ref is not None)


def _entry(given: Any, place: int) -> Any:
    """The entry of one spatial axis in an argument that may be one for all."""
    values = [given] if isinstance(given, int) else list(given)
    return values[place] if len(values) > 1 else values[0]
