"""The algebra of repetition: how every axis of a tensor is made of kept and repeated factors.

An axis is a sequence of segments, most significant first. ``(kept T)(repeated 24)`` is what
``repeat_interleave(x, 24)`` makes of an axis of T: the value at ``t * 24 + i`` does not depend on ``i``.
``(repeated 2)(kept T)`` is ``x.repeat(2)``, and ``(repeated 8)`` an expanded axis of size one. The small tensor of a
layout holds the kept factors only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import sympy

from lightint_compile.passes.evaluate import Size, plain


class Segment(NamedTuple):
    """A factor of an axis: ``size`` values that differ, or ``size`` repetitions of the same value."""

    repeated: bool
    size: Size


Axis = tuple[Segment, ...]
Layout = tuple[Axis, ...]


def kept(size: Size) -> Axis:
    """An axis without repetition."""
    return axis([Segment(False, size)])


def repeated(size: Size) -> Axis:
    """An axis along which nothing changes."""
    return axis([Segment(True, size)])


def axis(segments: Sequence[Segment]) -> Axis:
    """Segments in normal form: factors of one dropped, neighbours of one kind multiplied."""
    out: list[Segment] = []
    for segment in segments:
        if segment.size == 1:
            continue
        if out and out[-1].repeated == segment.repeated:
            out[-1] = Segment(segment.repeated, plain(out[-1].size * segment.size))
        else:
            out.append(segment)
    return tuple(out)


def full(shape: Sequence[Size]) -> Layout:
    """The layout of a tensor of which nothing is known to repeat."""
    return tuple(kept(size) for size in shape)


def product(sizes: Sequence[Size]) -> Size:
    """The product of sizes."""
    total: Size = 1
    for size in sizes:
        total = plain(total * size)
    return total


def size(of: Axis) -> Size:
    """Elements along the axis."""
    return product([segment.size for segment in of])


def kept_size(of: Axis) -> Size:
    """Elements of the small tensor along the axis."""
    return product([segment.size for segment in of if not segment.repeated])


def is_full(of: Axis) -> bool:
    """Whether nothing repeats along the axis."""
    return not any(segment.repeated for segment in of)


def is_constant(of: Axis) -> bool:
    """Whether all of the axis is one value, expanded."""
    return bool(of) and all(segment.repeated for segment in of)


def is_simple(of: Axis) -> bool:
    """Whether the kept values are one run, so that unsqueeze, expand and reshape rebuild the axis."""
    return sum(not segment.repeated for segment in of) <= 1


def repeats(layout: Layout) -> bool:
    """Whether anything repeats."""
    return not all(map(is_full, layout))


def without(layout: Layout, dims: Sequence[int]) -> Layout:
    """``layout`` with the repetition along ``dims`` written out."""
    wanted = {dim % len(layout) for dim in dims} if layout else set()
    return tuple(kept(size(entry)) if dim in wanted else entry for dim, entry in enumerate(layout))


def meet(left: Axis, right: Axis) -> Axis:
    """The most repetition that two axes of one size share; a constant axis is as repeated as any other."""
    if left == right or is_constant(right):
        return left
    return right if is_constant(left) else kept(size(left))


def quotient(whole: Size, part: Size) -> Size | None:
    """``whole / part`` where it is certainly a whole number."""
    if isinstance(whole, int) and isinstance(part, int):
        return whole // part if part and whole % part == 0 else None
    ratio = sympy.cancel(sympy.sympify(whole) / part)
    return plain(ratio) if sympy.fraction(ratio)[1] == 1 else None


def regroup(layout: Layout, shape: Sequence[Size]) -> tuple[Layout, Layout]:
    """The layout of a ``view`` to ``shape``, and the one its operand must have for that.

    Where an axis of the result would interleave kept and repeated factors more than once, or a cut falls inside a
    factor it does not divide, the operand's repetition there is written out.
    """
    needed: list[Axis] = []
    result: list[Axis] = []
    for sources, targets in groups([size(entry) for entry in layout], list(shape)):
        entries = [layout[dim] for dim in sources]
        out = _distribute([segment for entry in entries for segment in entry], [shape[dim] for dim in targets])
        if out is None or not all(map(is_simple, out)):
            entries = [kept(size(entry)) for entry in entries]
            out = [kept(shape[dim]) for dim in targets]
        needed.extend(entries)
        result.extend(out)
    return tuple(needed), tuple(result)


def groups(before: list[Size], after: list[Size]) -> list[tuple[range, range]]:
    """Runs of axes with equal products, in order; axes of one join the run they stand before."""
    groups = []
    i = j = 0
    while i < len(before) or j < len(after):
        start, other = i, j
        left: Size = 1
        right: Size = 1
        if i < len(before):
            left, i = before[i], i + 1
        if j < len(after):
            right, j = after[j], j + 1
        while left != right:
            if i < len(before) and (quotient(right, left) is not None or j == len(after)):
                left, i = plain(left * before[i]), i + 1
            elif j < len(after):
                right, j = plain(right * after[j]), j + 1
            else:
                break
        groups.append((range(start, i), range(other, j)))
    return groups


def _distribute(segments: list[Segment], sizes: list[Size]) -> list[Axis] | None:
    """Cut a run of factors into axes of the given sizes, ``None`` when a cut does not fall between factors."""
    rest = list(segments)
    out = []
    for wanted in sizes:
        taken: list[Segment] = []
        while wanted != 1:
            if not rest:
                return None
            front = rest[0]
            if (whole := quotient(wanted, front.size)) is not None:
                taken.append(rest.pop(0))
                wanted = whole
            elif (tail := quotient(front.size, wanted)) is not None:
                taken.append(Segment(front.repeated, wanted))
                rest[0] = Segment(front.repeated, tail)
                wanted = 1
            else:
                return None
        out.append(axis(taken))
    return out


def describe(layout: Layout, measure: Callable[[Axis], Size]) -> str:
    """The rows of the repeated axes as text, for remarks."""
    return str(product([measure(entry) for entry in layout if not is_full(entry)]))
