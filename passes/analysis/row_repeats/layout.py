"""The lattice of repetition: axes of factors that are kept, ``plain``, or repeated, ``same``.

The value at ``t * 24 + i`` of ``(kept T)(repeated 24)`` does not depend on ``i``. The small tensor of a layout holds
the kept factors only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightint_compile.passes.analysis.axes.factors import (
    Axis,
    Kind,
    Layout,
    extent,
    is_same,
    plain,
    regrouped,
    without,
)
from lightint_compile.passes.ir.fake_values import Size
from lightint_compile.passes.ir.sizes import product


def kept_size(of: Axis) -> Size:
    """Elements of the small tensor along the axis."""
    return without(of, Kind.SAME)


def is_full(of: Axis) -> bool:
    """Whether nothing repeats along the axis."""
    return not any(factor.repeated for factor in of)


def is_simple(of: Axis) -> bool:
    """Whether the kept values are one run, so that unsqueeze, expand and reshape rebuild the axis."""
    return sum(not factor.repeated for factor in of) <= 1


def repeats(layout: Layout) -> bool:
    """Whether anything repeats."""
    return not all(map(is_full, layout))


def meet(left: Axis, right: Axis) -> Axis:
    """The most repetition that two axes of one size share; a constant axis is as repeated as any other."""
    if left == right or is_same(right):
        return left
    return right if is_same(left) else plain(extent(left))


def regroup(layout: Layout, shape: Sequence[Size]) -> tuple[Layout, Layout]:
    """The layout of a ``view`` to ``shape``, and the one its operand must have for that.

    Where an axis of the result would interleave kept and repeated factors more than once, or a cut falls inside a
    factor it does not divide, the operand's repetition there is written out.
    """
    needed: list[Axis] = []
    result: list[Axis] = []
    for before, behind, axes in regrouped(layout, shape, fits=is_simple):
        needed.extend(layout[dim] if axes is not None else plain(extent(layout[dim])) for dim in before)
        result.extend([plain(shape[dim]) for dim in behind] if axes is None else axes)
    return tuple(needed), tuple(result)


def describe(layout: Layout, measure: Callable[[Axis], Size]) -> str:
    """The rows of the repeated axes as text, for remarks."""
    return str(product([measure(entry) for entry in layout if not is_full(entry)]))
