"""Values beside the entries, restricted to those that are kept: at their source where that is known, else by a read."""

from __future__ import annotations

import operator
from collections.abc import Container, Mapping
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.adaptive_context.kept_entries.lengths import Lengths
from lightint_compile.passes.adaptive_context.kept_entries.runs import (
    Axis,
    Runs,
    cut,
    divided,
    extent,
    is_free,
    joined,
    part,
    regrouped,
)
from lightint_compile.passes.adaptive_context.kept_entries.sizes_in_calls import filled
from lightint_compile.passes.analysis.axes.attention import dialect_of
from lightint_compile.passes.analysis.axes.movement import (
    Alike,
    Along,
    Joined,
    Movement,
    Padded,
    Picked,
    Range,
    Times,
)
from lightint_compile.passes.analysis.axes.table import movement_of
from lightint_compile.passes.ir.effects import is_pure
from lightint_compile.passes.ir.op_arguments import dimension, rank_of, sizes_of
from lightint_compile.passes.ir.op_families import Family
from lightint_compile.passes.ir.rewriter import Rewriter
from lightint_compile.passes.ir.sizes import total

aten = torch.ops.aten


class Pulling:
    """Makes restricted copies of what is computed beside the entries.

    A copy holds what the whole holds at the kept places. What only the whole needed is dead code from then on.

    Args:
        below: nodes below the entries, which are no longer what their movements say.
        entries: how many there are to keep from.
    """

    def __init__(self, rewriter: Rewriter, lengths: Lengths, below: Container[fx.Node], entries: int) -> None:
        self._rewriter, self._lengths, self._below, self._entries = rewriter, lengths, below, entries
        self._known: dict[tuple[fx.Node, int, Runs], fx.Node] = {}

    def pull(self, node: fx.Node, axis: int, runs: Runs, before: fx.Node) -> fx.Node:
        """``node`` restricted along ``axis``, in front of ``before``."""
        key = (node, axis, runs)
        if key not in self._known:
            self._known[key] = _Pull(self, before).of(node, axis, runs)
        return self._known[key]

    def read(self, node: fx.Node, axis: int, runs: Runs, before: fx.Node) -> fx.Node:
        """The kept values, read out of all of them."""
        places = self._lengths.places(runs)
        return self.call(node, before, aten.index_select.default, node, axis, places)

    def call(self, like: fx.Node, before: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call in front of ``before``, with the source line of ``like``."""
        with self._rewriter.at(before, rule="kept-frames", like=like):
            return self._rewriter.call(target, *args, **kwargs)

    def is_below(self, node: fx.Node) -> bool:
        """Whether a node is computed from the entries."""
        return node in self._below

    @property
    def entries(self) -> int:
        """How many there are to keep from."""
        return self._entries

    @property
    def lengths(self) -> Lengths:
        """How long axes are."""
        return self._lengths


class _Pull:
    """One restriction, from an operand of a call on to its sources."""

    def __init__(self, owner: Pulling, before: fx.Node) -> None:
        self._owner, self._before = owner, before

    def of(self, node: fx.Node, axis: int, runs: Runs) -> fx.Node:
        """``node`` restricted along ``axis``."""
        found = None if self._owner.is_below(node) else self._at_its_source(node, axis, runs)
        return found or self._owner.read(node, axis, runs, self._before)

    def _at_its_source(self, node: fx.Node, axis: int, runs: Runs) -> fx.Node | None:
        if node.op != "call_function" or dialect_of(node) is not None or not is_pure(node):
            return None
        if node.target is operator.getitem:
            return self._result(node, axis, runs)
        movement = movement_of(node)
        if movement is None:
            return None
        if movement.regroups is not None:
            return self._view(node, movement.regroups, axis, runs)
        return self._moved(node, movement, axis, runs) if len(movement.outputs) == 1 else None

    def _result(self, node: fx.Node, axis: int, runs: Runs) -> fx.Node | None:
        source, place = node.args
        assert isinstance(source, fx.Node) and isinstance(place, int)
        movement = movement_of(source)
        way = movement.outputs[place][axis] if movement is not None and movement.outputs else None
        if not isinstance(way, Along) or self._owner.is_below(source):
            return None
        assert movement is not None
        operands = self._along(movement, way, runs)
        if operands is None:
            return None
        return self._owner.call(node, self._before, operator.getitem, self._copy(source, operands), place)

    def _view(self, node: fx.Node, source: fx.Node, axis: int, runs: Runs) -> fx.Node | None:
        own: list[Axis] = list(sizes_of(node))
        own[axis] = runs
        before = regrouped(own, sizes_of(source), self._owner.entries)
        place = next((place for place, each in enumerate(before or ()) if isinstance(each, Runs)), None)
        if before is None or place is None:
            return None
        found = before[place]
        assert isinstance(found, Runs)
        lengths = self._owner.lengths
        pulled = self._pull(source, place, found)
        sizes = [lengths.of(each) if isinstance(each, Runs) else lengths.number(each) for each in own]
        return self._owner.call(node, self._before, aten.reshape.default, pulled, sizes)

    def _moved(self, node: fx.Node, movement: Movement, axis: int, runs: Runs) -> fx.Node | None:
        way = movement.outputs[0][axis]
        if isinstance(way, Along) and way.refs:
            operands = self._along(movement, way, runs)
            return None if operands is None else self._copy(node, operands)
        if isinstance(way, Alike) and node.target in (*Family.FILL.value, *Family.EXPAND.value):
            args = filled(node, axis, runs, self._owner.lengths)
            return self._owner.call(node, self._before, node.target, *args, **node.kwargs)  # type: ignore[arg-type]
        if isinstance(way, Joined):
            return self._joined(node, way, axis, runs)
        if isinstance(way, Range):
            return self._range(node, way, axis, runs)
        if isinstance(way, Times) and way.ref is not None:
            inner = divided(runs, way.copies) if not way.outside else None
            return None if inner is None else self._copy(node, {way.ref.node: self._pull(*way.ref, inner)})
        if isinstance(way, Picked):
            return self._copy(node, {way.numbers.node: self._pull(*way.numbers, runs)})
        return self._padded(node, way, runs) if isinstance(way, Padded) else None

    def _along(self, movement: Movement, way: Along, runs: Runs) -> Mapping[fx.Node, fx.Node] | None:
        """The operands of a call restricted; ``None`` for one that it is given twice, and reads otherwise besides."""
        wide = [ref for ref in way.refs if sizes_of(ref.node)[ref.axis] != 1]
        if len({ref.node for ref in wide}) < len({*wide}) or any(
            ref in read.refs for read in movement.reads for ref in wide
        ):
            return None
        return {ref.node: self._pull(*ref, runs) for ref in wide}

    def _joined(self, node: fx.Node, way: Joined, axis: int, runs: Runs) -> fx.Node | None:
        cuts = cut(runs, [sizes_of(ref.node)[ref.axis] for ref in way.refs], self._owner.entries)
        if cuts is None:
            return None
        pairs = zip(way.refs, cuts, strict=True)
        parts = [ref.node if is_free(own) else self._pull(*ref, own) for ref, own in pairs]
        return self._owner.call(node, self._before, aten.cat.default, parts, axis)

    def _range(self, node: fx.Node, way: Range, axis: int, runs: Runs) -> fx.Node | None:
        whole, step = sizes_of(way.ref.node)[way.ref.axis], way.step
        length = extent(runs, self._owner.entries)
        around = joined([way.start, runs, total([whole, -way.start, -length])])
        if around is None or step != 1 or node.target not in (aten.slice.Tensor, aten.narrow.default):
            return None
        lengths = self._owner.lengths
        pulled = self._pull(*way.ref, around)
        stop = joined([way.start, runs])
        assert stop is not None
        bounds = lengths.number(way.start), lengths.of(stop)
        dim = dimension(node, rank_of(way.ref.node))
        return self._owner.call(node, self._before, aten.slice.Tensor, pulled, dim, *bounds)

    def _padded(self, node: fx.Node, way: Padded, runs: Runs) -> fx.Node | None:
        length = extent(runs, self._owner.entries)
        stop = total([length, -way.after])
        inside = part(runs, way.before, stop, self._owner.entries)
        if inside is None or not all(isinstance(each, int) and each >= 0 for each in (way.before, way.after)):
            return None
        kept = {run for run in inside.runs.runs if run.of_entries}
        if len(kept) != len({run for run in runs.runs if run.of_entries}):
            return None  # entries among the padding
        return self._copy(node, {way.ref.node: self._pull(*way.ref, inside.runs)})

    def _pull(self, node: fx.Node, axis: int, runs: Runs) -> fx.Node:
        return self._owner.pull(node, axis, runs, self._before)

    def _copy(self, node: fx.Node, operands: Mapping[fx.Node, fx.Node]) -> fx.Node:
        """The call on other operands."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda given: operands.get(given, given))
        kwargs = {name: value for name, value in kwargs.items() if name != "output_size"}
        return self._owner.call(node, self._before, node.target, *args, **kwargs)
