"""Where the elements of a batch lie in a tensor: every axis as an ordered product of parts.

``[2 * B, heads, N, D]``, two branches of attention one behind the other, has the first axis ``(plain 2)(batch B)``;
tokens of all elements in one row, ``[B * T, C]``, have ``(batch B)(plain T)``. An axis along which nothing changes
(constants, what was expanded) is ``same``: it serves as either. The row of one element is the tensor without its batch
part.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from lightint_compile.passes.ir.fake_values import Size
from lightint_compile.passes.ir.sizes import dealt, groups, product


class Kind(StrEnum):
    """What moving along a part of an axis does: to another element, to another value of it, or nothing."""

    BATCH = "batch"
    PLAIN = "plain"
    SAME = "same"


class Part(NamedTuple):
    """A factor of an axis."""

    kind: Kind
    size: Size


Axis = tuple[Part, ...]
Layout = tuple[Axis, ...]


class Place(NamedTuple):
    """Where the batch lies in a tensor: on ``axis``, inside of ``outer`` and around ``inner`` values."""

    axis: int
    outer: Size
    inner: Size


def axis(*parts: Part) -> Axis:
    """Parts in normal form: factors of one dropped, neighbours multiplied unless they are batches."""
    out: list[Part] = []
    for part in parts:
        if part.size == 1:
            continue
        if out and out[-1].kind is part.kind and part.kind is not Kind.BATCH:
            out[-1] = Part(part.kind, product([out[-1].size, part.size]))
        else:
            out.append(part)
    return tuple(out)


def plain(size: Size) -> Axis:
    """An axis without elements of the batch."""
    return axis(Part(Kind.PLAIN, size))


def same(size: Size) -> Axis:
    """An axis along which nothing changes."""
    return axis(Part(Kind.SAME, size))


def batch(size: Size, outer: Size = 1, inner: Size = 1) -> Axis:
    """An axis with the batch inside of ``outer`` and around ``inner`` values."""
    return axis(Part(Kind.PLAIN, outer), Part(Kind.BATCH, size), Part(Kind.PLAIN, inner))


def shared(shape: Sequence[Size]) -> Layout:
    """The layout of a tensor that belongs to no element."""
    return tuple(map(plain, shape))


def extent(of: Axis) -> Size:
    """Values along an axis."""
    return product([part.size for part in of])


def row_extent(of: Axis) -> Size:
    """Values along an axis of one element's row."""
    return product([part.size for part in of if part.kind is not Kind.BATCH])


def batches(of: Axis) -> bool:
    """Whether an axis leads from element to element."""
    return any(part.kind is Kind.BATCH for part in of)


def is_same(of: Axis) -> bool:
    """Whether nothing changes along an axis longer than one."""
    return bool(of) and all(part.kind is Kind.SAME for part in of)


def place_of(layout: Layout) -> Place | None:
    """Where the batch lies; ``None`` for a tensor that belongs to no element."""
    for number, entry in enumerate(layout):
        for index, part in enumerate(entry):
            if part.kind is Kind.BATCH:
                return Place(number, extent(entry[:index]), extent(entry[index + 1 :]))
    return None


def count(layout: Layout) -> int:
    """How many axes, or parts of one, lead from element to element; more than one compares elements."""
    return sum(part.kind is Kind.BATCH for entry in layout for part in entry)


def regroup(layout: Layout, shape: Sequence[Size]) -> Layout | None:
    """The layout of a view to ``shape``; ``None`` when it cuts the batch apart."""
    result: list[Axis] = []
    for sources, targets in groups([extent(entry) for entry in layout], list(shape)):
        parts = axis(*(part for dim in sources for part in layout[dim]))
        sizes = [shape[dim] for dim in targets]
        found = dealt(parts, sizes, divides=lambda part: part.kind is not Kind.BATCH)
        if found is None and batches(parts):
            return None
        result.extend(map(plain, sizes) if found is None else (axis(*taken) for taken in found))
    return tuple(result)
