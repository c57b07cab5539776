"""How a call is made on small tensors: where factors lie in its results follows the movement of axes, and so does what
its operands must look like.

A small tensor lacks the factors of one kind (:mod:`~lightint_compile.passes.analysis.axes.factors`): batch elements and
repeated rows differ in what they say of that kind, not in how it moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch.fx as fx

from lightint_compile.passes.analysis.axes.factors import (
    Axis,
    Factor,
    Kind,
    Layout,
    axis,
    extent,
    holds,
    is_same,
    joined,
    met,
    plain,
    ranged,
    same,
)
from lightint_compile.passes.analysis.axes.movement import (
    Alike,
    Along,
    Joined,
    Movement,
    Picked,
    Range,
    Read,
    Ref,
    Times,
    Way,
)
from lightint_compile.passes.analysis.axes.moving import SELECTS
from lightint_compile.passes.ir.fake_values import Size

#: The layout of a node's value; the layout in which nothing is known when none is.
Layouts: TypeAlias = Callable[[fx.Node], Layout]


@dataclass(frozen=True)
class Plan:
    """How to make a call on small tensors.

    Attributes:
        results: the layouts of its results.
        operands: the layouts in which operands are read; of the others nothing is asked.
        computes: whether the node does arithmetic; a view or a repetition alone is not worth a rewrite.
        args: positional arguments of the small call, when they are not the node's own; nodes stand for their small
            tensors, and sizes may be expressions.
        target: what the small call calls, when it is not the node's own target.
        forwards: the operand whose small tensor is the small result; such a node is itself a repetition.
        made: makes the small tensor where that is no such call, with a function that makes a node.
    """

    results: tuple[Layout, ...]
    operands: Mapping[fx.Node, Layout] = field(default_factory=dict)
    computes: bool = True
    args: tuple[Any, ...] | None = None
    target: Callable[..., Any] | None = None
    forwards: fx.Node | None = None
    made: Callable[[Callable[..., fx.Node]], fx.Node] | None = None

    @property
    def result(self) -> Layout:
        """The layout of the first result."""
        return self.results[0]

    def of_operands(self, node: fx.Node, other: fx.Node) -> Plan:
        """This plan of ``node``, a call, as that of another which looks the same, on its own operands."""
        assert self.made is None  # what it makes would read this node's operands
        theirs = dict(zip(node.all_input_nodes, other.all_input_nodes, strict=True))
        return Plan(
            self.results,
            {theirs[operand]: layout for operand, layout in self.operands.items()},
            self.computes,
            None if self.args is None else fx.node.map_arg(self.args, theirs.__getitem__),
            self.target,
            None if self.forwards is None else theirs[self.forwards],
        )


@dataclass(frozen=True)
class Blocked:
    """Why a call cannot be made on small tensors.

    ``mixes`` is the ordinary end: an operand that differs in every row.
    """

    reason: str
    mixes: bool = False


MEETS = Blocked("elements of the batch meet one another, or values that belong to no element")
PICKS = Blocked(SELECTS.format("the batch"))


def results_of(node: fx.Node, movement: Movement, of: Layouts) -> list[Layout] | Blocked:
    """The layouts of a call's results."""
    found = [[carried(way, size, of) for way, size in output] for output in movement.sized(node)]
    why = next((entry for layout in found for entry in layout if isinstance(entry, Blocked)), None)
    return why or [tuple(entry for entry in layout if not isinstance(entry, Blocked)) for layout in found]


def carried(way: Way, size: Size, of: Layouts) -> Axis | Blocked:
    """What is known along an axis of a result."""

    def at(ref: Ref) -> Axis:
        return of(ref.node)[ref.axis]

    match way:
        case Along(refs):
            found = met(list(map(at, refs)))
            return MEETS if found is None else found
        case Joined(refs):
            found = joined(list(map(at, refs)))
            return MEETS if found is None else found
        case Range(ref, start, step):
            found = ranged(at(ref), start, step, size)
            return PICKS if found is None else found
        case Picked(_, numbers):
            return PICKS if holds(at(numbers), Kind.BATCH) else at(numbers)
        case Times(ref, copies, outside):
            own, more = () if ref is None else at(ref), Factor(Kind.SAME, copies)
            return axis([more, *own] if outside else [*own, more])
        case Alike(None):
            return same(size)
        case Alike(Ref() as ref) if holds(at(ref), Kind.BATCH):
            return at(ref)
    return plain(size)


def operands_of(
    movement: Movement, results: Iterable[Layout], of: Layouts, kind: Kind, others: Iterable[tuple[Ref, Axis]] = ()
) -> dict[fx.Node, Layout] | None:
    """The layouts in which a call reads its operands; ``None`` where it reads one in two.

    Args:
        others: axes that are read besides, and as what.
    """
    wanted: dict[Ref, Axis] = {}
    for ref, entry in (*_demands(movement, results, of, kind), *others):
        # An axis without a batch is part of every row as it is; a repetition can be written out.
        found = entry if kind is Kind.SAME or holds(entry, kind) else of(ref.node)[ref.axis]
        if wanted.setdefault(ref, found) != found:
            return None
    nodes = dict.fromkeys(ref.node for ref in wanted)
    return {node: tuple(wanted.get(Ref(node, axis), entry) for axis, entry in enumerate(of(node))) for node in nodes}


def _demands(movement: Movement, results: Iterable[Layout], of: Layouts, kind: Kind) -> Iterator[tuple[Ref, Axis]]:
    def at(ref: Ref) -> Axis:
        return of(ref.node)[ref.axis]

    whole = [ref for read in movement.reads for ref in read.refs]
    for ways, layout in zip(movement.outputs, results, strict=True):
        for way, entry in zip(ways, layout, strict=True):
            match way:
                case Along(refs):
                    for ref in refs:
                        stretched = kind is Kind.SAME and movement.stretches and is_same(at(ref))
                        yield ref, at(ref) if stretched or extent(at(ref)) == 1 else entry
                case Picked(_, ref):
                    yield ref, at(ref)
                case Range(ref) if is_same(at(ref)):
                    yield ref, at(ref)
                case Joined(refs):
                    whole.extend(refs)
                case Range(ref) | Alike(Ref() as ref):
                    whole.append(ref)
    yield from ((ref, plain(extent(at(ref)))) for ref in whole)


def read_along(movement: Movement, of: Layouts, kind: Kind) -> Iterator[tuple[Read, Ref]]:
    """The axes with a factor of a kind of which every value of a result needs all."""
    return ((read, ref) for read in movement.reads for ref in read.refs if holds(of(ref.node)[ref.axis], kind))
