"""The lattice of repetition: axes of factors that are kept, ``plain``, or repeated, ``same``.

The value at ``t * 24 + i`` of ``(kept T)(repeated 24)`` does not depend on ``i``. The small tensor of a layout holds
the kept factors only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightint_compile.passes.analysis.axes.factors import (
    Axis,
    Factor,
    Kind,
    Layout,
    axis,
    extent,
    is_same,
    plain,
    regrouped,
    same,
    shared,
    without,
)
from lightint_compile.passes.ir.fake_values import Size
from lightint_compile.passes.ir.sizes import product

kept, repeated, size, is_constant, full = plain, same, extent, is_same, shared

__all__ = ["Axis", "Layout", "axis", "full", "is_constant", "kept", "product", "repeated", "size"]


def Segment(repeated: bool, size: Size) -> Factor:  # noqa: N802 - it makes a value of the lattice
    """A factor: ``size`` values that differ, or ``size`` repetitions of the same value."""
    return Factor(Kind.SAME if repeated else Kind.PLAIN, size)


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
    if left == right or is_constant(right):
        return left
    return right if is_constant(left) else kept(size(left))


def regroup(layout: Layout, shape: Sequence[Size]) -> tuple[Layout, Layout]:
    """The layout of a ``view`` to ``shape``, and the one its operand must have for that.

    Where an axis of the result would interleave kept and repeated factors more than once, or a cut falls inside a
    factor it does not divide, the operand's repetition there is written out.
    """
    needed: list[Axis] = []
    result: list[Axis] = []
    for before, behind, axes in regrouped(layout, shape, fits=is_simple):
        needed.extend(layout[dim] if axes is not None else kept(size(layout[dim])) for dim in before)
        result.extend([kept(shape[dim]) for dim in behind] if axes is None else axes)
    return tuple(needed), tuple(result)


def describe(layout: Layout, measure: Callable[[Axis], Size]) -> str:
    """The rows of the repeated axes as text, for remarks."""
    return str(product([measure(entry) for entry in layout if not is_full(entry)]))
