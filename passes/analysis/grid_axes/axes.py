"""What the axes of a tensor mean: each axis is an ordered product of atoms, like the names in an einops pattern.

``[B, C, T, H, W]`` flattened to ``[B, C, N]`` has the axis ``N = (frames, height, width)``; a later view finds its
atoms again. Views, permutations, slices and concatenations of whole tensors become arithmetic on these products. Sizes
are integers or sympy expressions (a symbolic size by what it stands for), so that comparing them never adds a guard.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from lightint_compile.passes.analysis.axes.factors import extent
from lightint_compile.passes.ir.fake_values import Size, size_of
from lightint_compile.passes.ir.sizes import at_most, dealt, quotient, same, total

ROLES = ("frames", "height", "width")


class Origin(NamedTuple):
    """Where an axis first appeared: a node, the axis's number there, and the rank of that tensor."""

    node: str
    axis: int
    rank: int


class Atom(NamedTuple):
    """One factor of an axis.

    Attributes:
        size: its extent.
        role: ``frames``, ``height``, ``width`` where an operation fixed it, ``position`` for an ``arange``, ``kept``
            for what a buffer held before something was written into it, else empty.
        origin: where it came from.
        start: the first index kept of the original axis, where it was sliced.
        parts: for a concatenation, the axes it joins; such an atom is split only into frames and a plane.
        planes: for the frames of joined grids, the rest of every part, in order: planes of one height and width.
        plane: the one of these that stands for all of them, beside the frames.
        parent: for the inner piece of a split axis, the whole; next to its outer piece it becomes the whole again.
        note: why nothing more is known, for a person.
    """

    size: Size
    role: str = ""
    origin: Origin | None = None
    start: Size = 0
    parts: tuple[Axis, ...] = ()
    planes: tuple[Axis, ...] = ()
    plane: Axis = ()
    parent: Atom | None = None
    note: str = ""


Axis: TypeAlias = tuple[Atom, ...]
Axes: TypeAlias = tuple[Axis, ...]


def frames_of_input(origin: Origin, shape: Sequence[Size]) -> Axis:
    """An axis of an input as frames, height and width. The input has no such axes, so they count below zero."""
    sizes = enumerate(zip(ROLES, shape, strict=True))
    return tuple(Atom(size, role=role, origin=origin._replace(axis=-1 - number)) for number, (role, size) in sizes)


def knowledge(axis: Axis) -> int:
    """How much is known of an axis; broadcasting keeps the operand that knows most."""
    weights = {"frames": 100, "height": 100, "width": 100, "position": 10}
    total = 0
    for atom in axis:
        if atom.parts:
            total += 1 + sum(knowledge(part) for part in atom.parts)
        elif atom.size != 1:
            total += weights.get(atom.role, 0) + (30 if atom.origin and atom.origin.rank >= 5 else bool(atom.note))
    return total


def regroup(axes: Axes, shape: Sequence[Size]) -> list[Axis | None]:
    """The axes of a view with sizes ``shape``; ``None`` for axes that no product of atoms explains."""
    found = dealt([atom for axis in axes for atom in axis], shape, _split).axes
    return [*(fuse(_bare(tuple(taken))) for taken in found), *[None] * (len(shape) - len(found))]


def _bare(axis: Axis) -> Axis:
    """A join without the axes of one value beside it, of which nothing is known (a batch of one)."""
    if not any(atom.parts for atom in axis):
        return axis
    return tuple(atom for atom in axis if atom.size != 1 or atom.role)


def _split(atom: Atom, size: Size, row: Size) -> tuple[Atom, Axis] | None:
    """The outer ``size`` of an atom, and what lies inside of them."""
    return _stacked(atom, size, row) if atom.parts else (_outer(atom, size), (Atom(row, parent=atom, note=atom.note),))


def _stacked(atom: Atom, frames: Size, row: Size) -> tuple[Atom, Axis] | None:
    """Grids of one height and width joined along their tokens, as one grid of more frames: its frames, and a plane."""
    pieces = [_apart(part, row) for part in atom.parts]
    planes = tuple(plane for _, plane in pieces)
    if atom.planes or len(set(map(_looks, planes))) != 1 or not _looks(planes[0]):
        return None
    return Atom(frames, parts=tuple(outer for outer, _ in pieces), planes=planes, plane=planes[0]), planes[0]


def _apart(axis: Axis, row: Size) -> tuple[Axis, Axis]:
    """An axis in front of, and behind, the place where ``row`` values are left; nothing behind if there is none."""
    places = (place for place in reversed(range(len(axis))) if same(extent(axis[place:]), row))
    place = next(places, len(axis))
    return axis[:place], axis[place:]


def _looks(plane: Axis) -> tuple[object, ...]:
    """What tells planes apart: sizes and what they mean; empty where that is not known."""
    atoms = [atom for atom in plane if atom.size != 1]
    known = all(atom.role or (atom.origin and atom.origin.rank >= 5) for atom in atoms)
    return tuple((atom.size, atom.role or (atom.origin and atom.origin.axis)) for atom in atoms if known)


def _unstacked(frames: Atom) -> Axis:
    """The join that the frames of joined grids were taken from."""
    return join([(*outer, *plane) for outer, plane in zip(frames.parts, frames.planes, strict=True)])


def _outer(atom: Atom, size: Size) -> Atom:
    return atom._replace(size=size, start=0)


def fuse(axis: Axis) -> Axis:
    """Put the two pieces of a split axis together again where they are neighbours."""
    fused: list[Atom] = []
    for atom in axis:
        fused.append(atom)
        while (whole := _fused_end(fused)) is not None:
            fused = whole
    return tuple(fused)


def _fused_end(atoms: list[Atom]) -> list[Atom] | None:
    """``atoms`` with pieces at their end that are one again."""
    if len(atoms) > 1 and _rejoins(atoms[-2], atoms[-1]):
        assert atoms[-1].parent is not None
        return [*atoms[:-2], atoms[-1].parent]
    for place, atom in enumerate(atoms):
        if atom.planes and tuple(atoms[place + 1 :]) == atom.plane:
            return [*atoms[:place], *_unstacked(atom)]
    return None


def _rejoins(outer: Atom, inner: Atom) -> bool:
    whole = inner.parent
    return whole is not None and outer == _outer(whole, outer.size) and same(outer.size * inner.size, whole.size)


def join(axes: Sequence[Axis]) -> Axis:
    """The axis of a concatenation."""
    parts: list[Axis] = []
    for axis in axes:
        parts.extend(axis[0].parts if len(axis) == 1 and axis[0].parts and not axis[0].planes else (axis,))
    parts = [part for part in parts if extent(part) != 0]
    if len(parts) == 1:
        return parts[0]
    return (Atom(total(map(extent, parts)), parts=tuple(parts)),)


def cut(axis: Axis, start: Size, stop: Size) -> Axis:
    """The axis ``start:stop`` of an axis; parts, frames of a grid, and ranges of a single atom are followed."""
    length = size_of(stop - start)
    if same(start, 0) and same(length, extent(axis)):
        return axis
    if len(axis) == 1 and axis[0].planes:
        found = _cut_frames(axis[0], start, stop)
    elif len(axis) == 1 and axis[0].parts:
        found = _cut_parts(axis[0].parts, start, stop)
    else:
        found = _cut_rows(axis, start, length)
    return found or (Atom(length, note="a slice that does not end at a frame"),)


def _cut_parts(parts: Sequence[Axis], start: Size, stop: Size) -> Axis | None:
    """Whole parts, with the first and the last cut, where it can be told in which parts the ends are."""
    bounds = list(itertools.accumulate(map(extent, parts), _sum, initial=size_of(0)))
    first, last = _place(bounds, start), _place(bounds, stop)
    if first is None or last is None:
        return None
    kept: list[Axis] = []
    for number in range(first[0], min(last[0] + 1, len(parts))):
        low = first[1] if number == first[0] else 0
        high = last[1] if number == last[0] else extent(parts[number])
        kept += [cut(parts[number], low, high)] if high != 0 else []
    joined = join(kept) if kept else None
    return joined if joined and same(extent(joined), size_of(stop - start)) else None


def _place(bounds: Sequence[Size], at: Size) -> tuple[int, Size] | None:
    """The part that begins at ``at``, or has it inside, and how far inside; bounds are in order by definition."""
    for number, bound in enumerate(bounds):
        if same(bound, at):
            return number, 0
    for number, (begin, end) in enumerate(itertools.pairwise(bounds)):
        if at_most(begin, at) and at_most(at, end):
            return number, size_of(at - begin)
    return None


def _sum(left: Size, right: Size) -> Size:
    return size_of(left + right)


def _cut_frames(frames: Atom, start: Size, stop: Size) -> Axis | None:
    """Frames of joined grids, by the tokens that they stand for."""
    row = extent(frames.plane)
    tokens = cut(_unstacked(frames), size_of(start * row), size_of(stop * row))
    pieces = [_apart(part, row) for part in (tokens[0].parts or (tokens,))]
    parts, planes = tuple(outer for outer, _ in pieces), tuple(plane for _, plane in pieces)
    return (frames._replace(size=size_of(stop - start), parts=parts, planes=planes),) if all(planes) else None


def written(buffer: Axis, values: Axis, start: Size) -> Axis:
    """A buffer with ``values`` written from ``start`` on; as it was where nothing is known of them.

    What stays of it is marked ``kept``: which tokens these are cannot be told.
    """
    if knowledge(values) < 10:
        return buffer
    stop = size_of(start + extent(values))
    behind = cut(buffer, stop, extent(buffer))
    return join([_kept(cut(buffer, 0, start)), values, _kept(behind)])


def _kept(axis: Axis) -> Axis:
    return tuple(atom._replace(role=atom.role or "kept", parts=tuple(map(_kept, atom.parts))) for atom in axis)


def padded(axis: Axis, before: Size, length: Size) -> Axis:
    """An axis with other values around it, ``length`` in all.

    One of a single atom keeps its meaning: padding before patchify adds rows, columns or frames.
    """
    if len(axis) == 1 and not axis[0].parts:
        return (axis[0]._replace(size=length, parent=None),)
    after = size_of(length - before - extent(axis))
    return join([(Atom(before, note="padding"),), axis, (Atom(after, note="padding"),)])


def _cut_rows(axis: Axis, start: Size, length: Size) -> Axis | None:
    """A range of the outermost atom that is longer than one: whole frames of a grid."""
    for position, atom in enumerate(axis):
        if atom.size == 1 or atom.parts:
            continue
        row = extent(axis[position + 1 :])
        first, count = (0 if start == 0 else quotient(start, row)), quotient(length, row)
        if first is None or count is None:
            return None
        kept = atom._replace(size=count, start=size_of(atom.start + first), parent=None)
        return (*axis[:position], kept, *axis[position + 1 :])
    return None
