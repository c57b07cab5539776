"""What the axes of a tensor mean: each axis is an ordered product of atoms, like the names in an einops pattern.

``[B, C, T, H, W]`` flattened to ``[B, C, N]`` has the axis ``N = (frames, height, width)``; a later view finds its
atoms again. Views, permutations, slices and concatenations of whole tensors become arithmetic on these products. Sizes
are integers or sympy expressions (a symbolic size by what it stands for), so that comparing them never adds a guard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from lightint_compile.passes.ir.fake_values import Size, size_of
from lightint_compile.passes.ir.sizes import product, quotient, same

ROLES = ("frames", "height", "width")


@dataclass(frozen=True)
class Origin:
    """Where an axis first appeared: a node, the axis's number there, and the rank of that tensor."""

    node: str
    axis: int
    rank: int


@dataclass(frozen=True)
class Atom:
    """One factor of an axis.

    Attributes:
        size: its extent.
        role: ``frames``, ``height``, ``width`` where an operation fixed it, ``position`` for an ``arange``, else empty.
        origin: where it came from.
        start: the first index kept of the original axis, where it was sliced.
        parts: for a concatenation, the axes it joins; such an atom is never split.
        parent: for the inner piece of a split axis, the whole; next to its outer piece it becomes the whole again.
        note: why nothing more is known, for a person.
    """

    size: Size
    role: str = ""
    origin: Origin | None = None
    start: Size = 0
    parts: tuple[Axis, ...] = ()
    parent: Atom | None = None
    note: str = ""


Axis: TypeAlias = tuple[Atom, ...]
Axes: TypeAlias = tuple[Axis, ...]


def extent(axis: Axis) -> Size:
    """The number of elements along an axis."""
    return product([atom.size for atom in axis])


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


def better(left: Axis, right: Axis) -> Axis:
    """The axis that knows more; the left one when they know as much."""
    return right if knowledge(right) > knowledge(left) else left


def regroup(axes: Axes, shape: Sequence[Size]) -> list[Axis | None]:
    """The axes of a view with sizes ``shape``; ``None`` for axes that no product of atoms explains."""
    pending = [atom for axis in axes for atom in axis]
    result: list[Axis | None] = []
    for position, wanted in enumerate(shape):
        taken = _take(pending, wanted, last=position == len(shape) - 1)
        result.append(None if taken is None else fuse(taken))
        if taken is None:
            return result + [None] * (len(shape) - len(result))
    return result


def _take(pending: list[Atom], wanted: Size, *, last: bool) -> Axis | None:
    """Take atoms of product ``wanted`` from the front, splitting the last one where needed."""
    if wanted == 1 and not last:
        return (pending.pop(0),) if pending and pending[0].size == 1 else ()
    taken: list[Atom] = []
    missing = wanted
    while missing != 1:
        if not pending:
            return None
        atom = pending.pop(0)
        rest = quotient(missing, atom.size)
        if rest is not None:
            taken.append(atom)
            missing = rest
            continue
        inner = None if atom.parts else quotient(atom.size, missing)
        if inner is None:
            return None
        taken.append(_outer(atom, missing))
        pending.insert(0, Atom(inner, parent=atom, note=atom.note))
        missing = 1
    while last and pending and pending[0].size == 1:
        taken.append(pending.pop(0))
    return tuple(taken)


def _outer(atom: Atom, size: Size) -> Atom:
    return replace(atom, size=size, start=0)


def fuse(axis: Axis) -> Axis:
    """Put the two pieces of a split axis together again where they are neighbours."""
    fused: list[Atom] = []
    for atom in axis:
        fused.append(atom)
        while len(fused) > 1 and _rejoins(fused[-2], fused[-1]):
            whole = fused[-1].parent
            assert whole is not None
            fused[-2:] = [whole]
    return tuple(fused)


def _rejoins(outer: Atom, inner: Atom) -> bool:
    whole = inner.parent
    return whole is not None and outer == _outer(whole, outer.size) and same(outer.size * inner.size, whole.size)


def join(axes: Sequence[Axis]) -> Axis:
    """The axis of a concatenation."""
    parts: list[Axis] = []
    for axis in axes:
        parts.extend(axis[0].parts if len(axis) == 1 and axis[0].parts else (axis,))
    parts = [part for part in parts if extent(part) != 0]
    if len(parts) == 1:
        return parts[0]
    total: Size = 0
    for part in parts:
        total = size_of(total + extent(part))
    return (Atom(total, parts=tuple(parts)),)


def cut(axis: Axis, start: Size, stop: Size) -> Axis:
    """The axis ``start:stop`` of an axis; parts, frames of a grid, and ranges of a single atom are followed."""
    length = size_of(stop - start)
    if same(start, 0) and same(length, extent(axis)):
        return axis
    if len(axis) == 1 and axis[0].parts:
        found = _cut_parts(axis[0].parts, start, stop)
    else:
        found = _cut_rows(axis, start, length)
    return found or (Atom(length, note="a slice that does not end at a frame"),)


def _cut_parts(parts: Sequence[Axis], start: Size, stop: Size) -> Axis | None:
    """Whole parts, with the first and the last cut where sizes are plain integers."""
    begin: Size = 0
    kept: list[Axis] = []
    inside = False
    for part in parts:
        end = size_of(begin + extent(part))
        if all(isinstance(value, int) for value in (begin, end, start, stop)):
            low, high = max(begin, start), min(end, stop)
            if low < high:
                kept.append(cut(part, low - begin, high - begin))
        else:
            inside = inside or same(begin, start)
            if inside:
                kept.append(part)
            inside = inside and not same(end, stop)
        begin = end
    joined = join(kept) if kept else None
    return joined if joined and same(extent(joined), size_of(stop - start)) else None


def _cut_rows(axis: Axis, start: Size, length: Size) -> Axis | None:
    """A range of the outermost atom that is longer than one: whole frames of a grid."""
    for position, atom in enumerate(axis):
        if atom.size == 1 or atom.parts:
            continue
        row = extent(axis[position + 1 :])
        first, count = (0 if start == 0 else quotient(start, row)), quotient(length, row)
        if first is None or count is None:
            return None
        kept = replace(atom, size=count, start=size_of(atom.start + first), parent=None)
        return (*axis[:position], kept, *axis[position + 1 :])
    return None
