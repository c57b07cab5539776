"""The lattice of batch elements: where the elements of a batch lie in a tensor.

An axis along which nothing changes (constants, what was expanded) is ``same``: it serves as either kind of axis. The
row of one element is the tensor without its batch factor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

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
    without,
)
from lightint_compile.passes.ir.fake_values import Size
from lightint_compile.passes.ir.fake_values import plain as plain_size
from lightint_compile.passes.ir.sizes import quotient


class Place(NamedTuple):
    """Where the batch lies in a tensor: on ``axis``, inside of ``outer`` and around ``inner`` values."""

    axis: int
    outer: Size
    inner: Size


def batch(size: Size, outer: Size = 1, inner: Size = 1) -> Axis:
    """An axis with the batch inside of ``outer`` and around ``inner`` values."""
    return axis([Factor(Kind.PLAIN, outer), Factor(Kind.BATCH, size), Factor(Kind.PLAIN, inner)])


def row_extent(of: Axis) -> Size:
    """Values along an axis of one element's row."""
    return without(of, Kind.BATCH)


def batches(of: Axis) -> bool:
    """Whether an axis leads from element to element."""
    return any(factor.kind is Kind.BATCH for factor in of)


def place_of(layout: Layout) -> Place | None:
    """Where the batch lies; ``None`` for a tensor that belongs to no element."""
    for number, entry in enumerate(layout):
        for index, factor in enumerate(entry):
            if factor.kind is Kind.BATCH:
                return Place(number, extent(entry[:index]), extent(entry[index + 1 :]))
    return None


def count(layout: Layout) -> int:
    """How many axes, or factors of one, lead from element to element; more than one compares elements."""
    return sum(factor.kind is Kind.BATCH for entry in layout for factor in entry)


def regroup(layout: Layout, shape: Sequence[Size]) -> Layout | None:
    """The layout of a view to ``shape``; ``None`` when it cuts the batch apart."""
    result: list[Axis] = []
    for before, behind, axes in regrouped(layout, shape, divides=lambda factor: factor.kind is not Kind.BATCH):
        if axes is None and any(batches(layout[dim]) for dim in before):
            return None
        result.extend((plain(shape[dim]) for dim in behind) if axes is None else axes)
    return tuple(result)


def inner(of: Axis) -> Axis:
    """The batch with all that lies inside of it."""
    place = place_of((of,))
    assert place is not None
    size = next(factor.size for factor in of if factor.kind is Kind.BATCH)
    return batch(size, 1, place.inner)


def runs(of: Axis, length: Size) -> Size | None:
    """How often the whole batch, with what lies inside of it, goes into ``length``; ``None`` unless it does evenly."""
    return quotient(length, extent(inner(of)))


def shortened(of: Axis, length: Size) -> Axis | None:
    """An axis of whole runs of ``of``; ``None`` when ``length`` is none."""
    outer = runs(of, length)
    return None if outer is None else axis([Factor(Kind.PLAIN, outer), *inner(of)])


def joined_along(entries: Sequence[Axis]) -> Axis | None:
    """Axes one behind the other: all of them with the batch around as much, or all without."""
    total = plain_size(sum(map(extent, entries)))
    if not any(map(batches, entries)):
        return plain(total)
    if not all(map(batches, entries)) or len(set(map(inner, entries))) != 1:
        return None
    return shortened(entries[0], total)


def joined(entries: Iterable[Axis]) -> Axis | None:
    """The axis that operands share once broadcast together; ``None`` where elements would meet other values."""
    known = [entry for entry in entries if extent(entry) != 1]
    leading = next((entry for entry in known if batches(entry)), None)
    if leading is None:
        unchanging = known and all(map(is_same, known))
        return known[0] if unchanging else plain(extent(known[0])) if known else ()
    wanted = skeleton(leading)
    if all(skeleton(entry) == wanted if batches(entry) else is_constant_over(entry, wanted) for entry in known):
        return wanted
    return None


def skeleton(of: Axis) -> Axis:
    """An axis with a batch, whatever else is known of it."""
    place = place_of((of,))
    assert place is not None
    return axis([Factor(Kind.PLAIN, place.outer), *inner(of)])


def is_constant_over(of: Axis, wanted: Axis) -> bool:
    """Whether the values along an axis of the same extent are those of each element alike, at the front of it."""
    place = place_of((wanted,))
    assert place is not None
    if is_same(of):
        return True
    size = next(factor.size for factor in wanted if factor.kind is Kind.BATCH)
    outer = of[0].size if of and of[0].repeated else 1
    return place.outer == 1 and quotient(outer, size) is not None
