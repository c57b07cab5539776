"""Axes as ordered products of atoms, so that axes are told apart by what they hold and not by their sizes.

A tensor of shape ``[batch * heads, tokens, head_dim]`` has the axes ``((b, h), (t,), (d,))``. Two axes of equal size
are still two axes; a fold is undone by a later view only where it splits at the same place; a repeated head (``repeat``
puts the copies outside, ``repeat_interleave`` inside) shows in the order of the atoms. After einops' notation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy

from lightint_compile.passes.analysis.axes.factors import extent
from lightint_compile.passes.ir.fake_values import Size
from lightint_compile.passes.ir.fake_values import size_of as as_size
from lightint_compile.passes.ir.sizes import dealt, quotient, same


class AxisError(Exception):
    """Two axes, or an axis and a size, that cannot be brought together."""


class Atom:
    """One factor of an axis. An atom is one of: free, the same as another, or split into others (``parts``)."""

    __slots__ = ("parts", "size")

    def __init__(self, size: Size) -> None:
        self.size = size
        self.parts: tuple[Atom, ...] | None = None

    def __repr__(self) -> str:
        return f"<{self.size}>" if self.parts is None else repr(self.parts)


#: The factors of one dimension, outermost first. An axis of size one may be empty or hold atoms of size one.
Axis = tuple[Atom, ...]
Axes = tuple[Axis, ...]


def fresh(size: Any) -> Axis:
    """A new axis that is equal to no other."""
    return (Atom(as_size(size)),)


def fresh_axes(shape: Sequence[Any]) -> Axes:
    """New axes for a tensor about which nothing is known."""
    return tuple(fresh(size) for size in shape)


def atoms(axis: Axis) -> Axis:
    """The free atoms of an axis with everything learnt so far; atoms of size one are left out."""
    found: list[Atom] = []
    for atom in axis:
        if atom.parts is not None:
            found.extend(atoms(atom.parts))
        elif atom.size != 1:
            found.append(atom)
    return tuple(found)


def all_atoms(axes: Sequence[Axis]) -> frozenset[Atom]:
    """The free atoms of a whole tensor."""
    return frozenset(atom for axis in axes for atom in atoms(axis))


def resolved(axes: Sequence[Axis]) -> Axes:
    """Every axis as its free atoms."""
    return tuple(map(atoms, axes))


def size_of(axis: Axis) -> Size:
    """The number of elements along an axis."""
    return extent(atoms(axis))


def equal(left: Any, right: Any) -> bool:
    """Whether two sizes are equal, known without a new guard."""
    return same(as_size(left), as_size(right))


def _differ(left: Size, right: Size) -> bool:
    """Whether two sizes are known to be unequal."""
    difference = sympy.expand(left - right)
    return bool(difference.is_number and difference != 0)


def unify(left: Axis, right: Axis, *, asserted: bool = False) -> None:
    """Learn that two axes are the same one, factor by factor.

    Args:
        asserted: an operator that reads both fails unless the sizes are equal, so two symbols that are not known to be
            equal may be taken as such.

    Raises:
        AxisError: their sizes differ, or cannot be related without a guard.
    """
    one, other = list(atoms(left)), list(atoms(right))
    if asserted and len(one) == len(other) == 1 and not _differ(one[0].size, other[0].size):
        if one[0] is not other[0]:
            other[0].parts = (one[0],)
        return
    while one and other:
        a, b = one.pop(0), other.pop(0)
        if a is b:
            continue
        if same(a.size, b.size):
            b.parts = (a,)
        elif (rest := quotient(a.size, b.size)) is not None:
            one.insert(0, _split(a, b, Atom(rest)))
        elif (rest := quotient(b.size, a.size)) is not None:
            other.insert(0, _split(b, a, Atom(rest)))
        else:
            raise AxisError(f"sizes {a.size} and {b.size} have no common factor that is known")
        one, other = list(atoms(tuple(one))), list(atoms(tuple(other)))
    if one or other:
        raise AxisError(f"sizes {size_of(left)} and {size_of(right)} differ")


def broadcast(left: Sequence[Axis], right: Sequence[Axis]) -> Axes:
    """The axes of an elementwise operation: aligned at the right, an axis of size one fits any.

    Raises:
        AxisError: see :func:`unify`.
    """
    rank = max(len(left), len(right))
    padded = [((),) * (rank - len(axes)) + tuple(axes) for axes in (left, right)]
    result = []
    for a, b in zip(*padded, strict=True):
        if atoms(a) and atoms(b):
            unify(a, b)
        result.append(a if atoms(a) else b)
    return tuple(result)


def regroup(axes: Sequence[Axis], shape: Sequence[Any]) -> Axes:
    """The axes after a view to ``shape``.

    Raises:
        AxisError: the view cuts through an axis at a place that its factors do not allow.
    """
    before = [atom for axis in axes for atom in atoms(axis)]
    sizes = list(map(as_size, shape))
    found = dealt(before, sizes, _cut).to(len(sizes))
    if found is None:
        raise AxisError(f"a view to {sizes} cuts axes of {[atom.size for atom in before]} beside their factors")
    return tuple(tuple(taken) or fresh(1) for taken in found)


def _cut(atom: Atom, outer: Size, inner: Size) -> tuple[Atom, list[Atom]]:
    head = Atom(outer)
    return head, [_split(atom, head, Atom(inner))]


def _split(atom: Atom, head: Atom, tail: Atom) -> Atom:
    atom.parts = (head, tail)
    return tail
