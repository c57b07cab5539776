"""The algebra of repetition: how every axis of a tensor is made of kept and repeated factors.

An axis is a sequence of segments, most significant first. ``(kept T)(repeated 24)`` is what
``repeat_interleave(x, 24)`` makes of an axis of T: the value at ``t * 24 + i`` does not depend on ``i``.
``(repeated 2)(kept T)`` is ``x.repeat(2)``, and ``(repeated 8)`` an expanded axis of size one. The small tensor of a
layout holds the kept factors only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from lightint_compile.passes.ir.fake_values import Size, plain
from lightint_compile.passes.ir.sizes import dealt, groups, product


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


def regroup(layout: Layout, shape: Sequence[Size]) -> tuple[Layout, Layout]:
    """The layout of a ``view`` to ``shape``, and the one its operand must have for that.

    Where an axis of the result would interleave kept and repeated factors more than once, or a cut falls inside a
    factor it does not divide, the operand's repetition there is written out.
    """
    needed: list[Axis] = []
    result: list[Axis] = []
    for sources, targets in groups([size(entry) for entry in layout], list(shape)):
        entries = [layout[dim] for dim in sources]
        segments = axis([segment for entry in entries for segment in entry])
        cut = dealt(segments, [shape[dim] for dim in targets])
        out = [axis(taken) for taken in cut or ()]
        if cut is None or not all(map(is_simple, out)):
            entries = [kept(size(entry)) for entry in entries]
            out = [kept(shape[dim]) for dim in targets]
        needed.extend(entries)
        result.extend(out)
    return tuple(needed), tuple(result)


def describe(layout: Layout, measure: Callable[[Axis], Size]) -> str:
    """The rows of the repeated axes as text, for remarks."""
    return str(product([measure(entry) for entry in layout if not is_full(entry)]))
