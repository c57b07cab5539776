"""What an operator does to axes: for each axis of its result, which axes of its operands it comes from, and how.

The idea is that of the sharding rules of GSPMD and Shardy, a table from operators to factors of their axes. Here it
carries what an axis means, what repeats along it, which element of a batch it leads to, and which axis it is. An
operator is taught by one function from a call to its :class:`Movement`, registered with :func:`moves`; every analysis
reads that table and has no rule of its own for any operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import torch.fx as fx

from lightint_compile.passes.ir.fake_values import Size, shape_of
from lightint_compile.passes.ir.op_arguments import results_in
from lightint_compile.passes.ir.op_families import Family


class Ref(NamedTuple):
    """An axis of an operand, counted from the front."""

    node: fx.Node
    axis: int


class Along(NamedTuple):
    """Value ``i`` is made from the values ``i`` of these axes alone, for every ``i`` alike. No axes: an axis of one."""

    refs: tuple[Ref, ...] = ()


class Across(NamedTuple):
    """As long as ``ref`` and in its order, but a value depends on others along it, or on where it stands."""

    ref: Ref


class New(NamedTuple):
    """An axis that no operand has: features of a product."""


class Alike(NamedTuple):
    """An axis along which nothing changes: filled or expanded.

    ``like`` is an axis of the same meaning.
    """

    like: Ref | None = None


class Range(NamedTuple):
    """The values from ``start`` on, every ``step``-th."""

    ref: Ref
    start: Size
    step: Size = 1


class Joined(NamedTuple):
    """Axes one behind the other."""

    refs: tuple[Ref, ...]


class Picked(NamedTuple):
    """The values whose numbers an axis holds; ``first`` where they are known to be a run from there on."""

    ref: Ref
    numbers: Ref
    first: Size | None = None


class Times(NamedTuple):
    """Copies of an axis: of it as a whole (``outside``), or of every value. Without ``ref``: of an axis of one."""

    ref: Ref | None
    copies: Size
    outside: bool


class Reordered(NamedTuple):
    """The same values in another order."""

    ref: Ref


class Padded(NamedTuple):
    """An axis with ``before`` and ``after`` values of another kind around it; negative where values are cut off."""

    ref: Ref
    before: Size
    after: Size


class Written(NamedTuple):
    """An axis of a buffer with the values of ``source`` written from ``start`` on, at every ``step``-th place.

    One value without a ``source``.
    """

    ref: Ref
    source: Ref | None
    start: Size
    step: Size = 1


class Window(NamedTuple):
    """A spatial axis of a convolution or pooling: value ``i`` is made from a neighbourhood along ``ref``."""

    ref: Ref


Way: TypeAlias = Along | Across | New | Alike | Range | Joined | Picked | Times | Reordered | Padded | Written | Window


class Read(NamedTuple):
    """Axes that every value needs all of, those of one product together.

    ``how`` says it, with ``{}`` for the axis; empty for what is plain to see.
    """

    refs: tuple[Ref, ...]
    how: str = ""


class Movement(NamedTuple):
    """What a call does to axes.

    Attributes:
        outputs: for each tensor of the result, the way of each of its axes.
        reads: the axes that every value needs all of.
        regroups: of a view the operand, whose axes are cut and joined as the sizes of the result say; no outputs then.
        computes: whether there is arithmetic; a view, a copy or a choice of values alone has none.
        places: of a choice of one value along the axis that is read, its place for each result.
        stretches: whether an operand of size one on an axis stands for as many equal values as the others have.
    """

    outputs: tuple[tuple[Way, ...], ...] = ()
    reads: tuple[Read, ...] = ()
    regroups: fx.Node | None = None
    computes: bool = True
    places: tuple[Size, ...] = ()
    stretches: bool = True

    def sized(self, node: fx.Node) -> list[list[tuple[Way, Size]]]:
        """For each result of the call, the ways of its axes with their extents."""
        shapes = map(shape_of, results_in(node))
        return [list(zip(ways, shape, strict=True)) for ways, shape in zip(self.outputs, shapes, strict=True)]

    def ways(self) -> Iterator[Way]:
        """The ways of all axes of all results."""
        return (way for output in self.outputs for way in output)


Rule: TypeAlias = Callable[[fx.Node], Movement | None]
"""The movement of a call; ``None`` for a form of the operator about which nothing is said."""

MOVEMENTS: dict[Any, Rule] = {}
"""The table: from an operator to its rule."""


def moves(*targets: Any) -> Callable[[Rule], Rule]:
    """Teach operators: overloads, or families of them."""

    def register(rule: Rule) -> Rule:
        for target in targets:
            MOVEMENTS.update(dict.fromkeys(target.value if isinstance(target, Family) else (target,), rule))
        return rule

    return register
