"""The lattice of repetition: axes of factors that are kept, ``plain``, repeated, ``same``, or picked from fewer rows.

The value at ``t * 24 + i`` of ``(kept T)(repeated 24)`` does not depend on ``i``. The small tensor of a layout holds
the kept factors, and of a picked one the rows that are picked from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from lightint_compile.passes.analysis.axes.factors import (
    Axis,
    Factor,
    Kind,
    Layout,
    Picks,
    holds,
    regrouped,
    without,
)
from lightint_compile.passes.ir.fake_values import Size
from lightint_compile.passes.ir.sizes import product


def kept(factor: Factor) -> Size:
    """Elements of the small tensor along a factor."""
    return factor.without(Kind.SAME)


def kept_size(of: Axis) -> Size:
    """Elements of the small tensor along the axis."""
    return without(of, Kind.SAME)


def is_picked(of: Axis) -> bool:
    """Whether an index says which rows stand where along the axis, or along a part of it."""
    return any(factor.picks is not None for factor in of)


def picks_of(of: Axis) -> Iterator[Picks]:
    """What is picked along the axis, and what that is picked from in turn."""
    for factor in of:
        if factor.picks is not None:
            yield factor.picks
            if isinstance(factor.picks.numbers, tuple):
                yield from (picks for part in factor.picks.numbers for picks in picks_of(part))


def is_full(of: Axis) -> bool:
    """Whether nothing repeats along the axis."""
    return not holds(of, Kind.SAME)


def is_simple(of: Axis) -> bool:
    """Whether the kept values are one run, so that unsqueeze, expand and reshape rebuild the axis."""
    return sum(factor.kind is Kind.PLAIN for factor in of) <= 1


def repeats(layout: Layout) -> bool:
    """Whether anything repeats."""
    return any([holds(entry, Kind.SAME) for entry in layout])


def regroup(layout: Layout, shape: Sequence[Size]) -> tuple[Layout, Layout]:
    """The layout that the operand of a ``view`` to ``shape`` must have, and that of its result.

    Where an axis of the result would interleave kept and repeated factors more than once, or a cut falls inside a
    factor it does not divide, the operand's repetition there is written out.
    """
    found = regrouped(layout, shape, is_simple)
    assert found is not None
    return found


def describe(layout: Layout, measure: Callable[[Axis], Size]) -> str:
    """The rows of the repeated axes as text, for remarks."""
    return str(product([measure(entry) for entry in layout if not is_full(entry)]))
