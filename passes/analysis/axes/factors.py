"""An axis as an ordered product of factors, the outermost first, like the names in an einops pattern.

``[2 * B, heads, N, D]``, two branches one behind the other, has the first axis ``(plain 2)(batch B)``; tokens of all
elements in one row, ``[B * T, C]``, have ``(batch B)(plain T)``; ``repeat_interleave(x, 24)`` makes ``(plain T)(same
24)`` of an axis of T, ``x.repeat(2)`` makes ``(same 2)(plain T)``, and an expanded axis of one is ``(same 8)``. Rows
that are few values in any order, ``x[index]``, are ``(picked N)``.

The *small* tensor lacks the factors of one kind: without ``batch`` it is the row of one element, without ``same`` it
holds every repeated value once, and of picked rows those that are picked from. An axis along which nothing changes
serves as any other of its size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import reduce
from typing import NamedTuple, TypeAlias

import torch.fx as fx

from lightint_compile.passes.ir.fake_values import Size
from lightint_compile.passes.ir.sizes import Sized, dealt, groups, product, quotient, total


class Kind(StrEnum):
    """What moving along a factor does: to another element of the batch, to another value, or nothing."""

    BATCH = "batch"
    PLAIN = "plain"
    SAME = "same"


class Picks(NamedTuple):
    """What moving along a picked factor does: to one of fewer values, by its number.

    Attributes:
        rows: how many there are to pick from.
        numbers: the node that holds their numbers, one for each place; or the axes that stand one behind the other, of
            whose values each is picked from; or the node of a mask, whose values are false and true.
    """

    rows: Size
    numbers: fx.Node | tuple[Axis, ...]


class Factor(NamedTuple):
    """A factor of an axis."""

    kind: Kind | Picks
    size: Size

    @property
    def repeated(self) -> bool:
        """Whether nothing changes along it."""
        return self.kind is Kind.SAME

    @property
    def picks(self) -> Picks | None:
        """What its values are picked from, if they are."""
        return self.kind if isinstance(self.kind, Picks) else None

    def has(self, kind: Kind) -> bool:
        """Whether the small tensor without a kind has less of it; what is picked is repeated too."""
        return self.kind is kind or (kind is Kind.SAME and self.picks is not None)

    def without(self, kind: Kind) -> Size:
        """Values along it in the small tensor without a kind."""
        return 1 if self.kind is kind else self.size if self.picks is None else self.picks.rows


Axis: TypeAlias = tuple[Factor, ...]
Layout: TypeAlias = tuple[Axis, ...]


class Place(NamedTuple):
    """Where the batch lies in a tensor: on ``axis``, inside of ``outer`` and around ``inner`` values."""

    axis: int
    outer: Size
    inner: Size


def axis(factors: Sequence[Factor]) -> Axis:
    """Factors in normal form: those of one dropped, plain or equal neighbours multiplied."""
    out: list[Factor] = []
    for factor in factors:
        if factor.size == 1:
            continue
        if out and out[-1].kind is factor.kind and factor.kind in (Kind.PLAIN, Kind.SAME):
            out[-1] = Factor(factor.kind, product([out[-1].size, factor.size]))
        else:
            out.append(factor)
    return tuple(out)


def plain(size: Size) -> Axis:
    """An axis of which nothing is known."""
    return () if size == 1 else (Factor(Kind.PLAIN, size),)


def same(size: Size) -> Axis:
    """An axis along which nothing changes."""
    return axis([Factor(Kind.SAME, size)])


def batch(size: Size, outer: Size = 1, inner: Size = 1) -> Axis:
    """An axis with the batch inside of ``outer`` and around ``inner`` values."""
    return axis([Factor(Kind.PLAIN, outer), Factor(Kind.BATCH, size), Factor(Kind.PLAIN, inner)])


def shared(shape: Sequence[Size]) -> Layout:
    """The layout of a tensor of which nothing is known."""
    return tuple(map(plain, shape))


def extent(of: Sequence[Sized]) -> Size:
    """Values along an axis, whatever is known of its factors."""
    return of[0].size if len(of) == 1 else product([factor.size for factor in of])


def without(of: Axis, kind: Kind) -> Size:
    """Values along an axis of the small tensor without factors of a kind."""
    return product([factor.without(kind) for factor in of])


def holds(of: Axis, kind: Kind) -> bool:
    """Whether an axis has a factor of a kind."""
    for factor in of:  # noqa: SIM110 - asked of every axis of every value
        if factor.has(kind):
            return True
    return False


def count(layout: Layout, kind: Kind = Kind.BATCH) -> int:
    """How many factors of a kind a tensor has; more than one batch compares elements."""
    return sum(factor.has(kind) for entry in layout for factor in entry)


def is_same(of: Axis) -> bool:
    """Whether nothing changes along an axis longer than one."""
    return bool(of) and all(factor.repeated for factor in of)


def place_of(layout: Layout) -> Place | None:
    """Where the batch lies; ``None`` for a tensor that belongs to no element."""
    for number, entry in enumerate(layout):
        for index, factor in enumerate(entry):
            if factor.kind is Kind.BATCH:
                return Place(number, extent(entry[:index]), extent(entry[index + 1 :]))
    return None


def regrouped(
    layout: Layout, shape: Sequence[Size], fits: Callable[[Axis], bool] = lambda found: True
) -> tuple[Layout, Layout] | None:
    """The layout of a view to ``shape``, and the one that its operand must have for that; ``None`` if it cuts a batch.

    Where a run of axes is cut beside its factors, or into axes that do not fit, nothing is known of it.
    """
    needed, result = list(layout), list[Axis]()
    for before, behind in groups([extent(entry) for entry in layout], list(shape)):
        factors = axis([factor for dim in before for factor in layout[dim]])
        taken = dealt(factors, [shape[dim] for dim in behind], _cut).to(len(behind))
        axes = [] if taken is None else list(map(axis, taken))
        if taken is None or not all(map(fits, axes)):
            if holds(factors, Kind.BATCH):
                return None
            axes = [plain(shape[dim]) for dim in behind]
            needed[before.start : before.stop] = [plain(extent(layout[dim])) for dim in before]
        result.extend(axes)
    return tuple(needed), tuple(result)


def _cut(factor: Factor, outer: Size, inner: Size) -> tuple[Factor, list[Factor]] | None:
    whole = factor.kind is Kind.BATCH or factor.picks is not None
    return None if whole else (Factor(factor.kind, outer), [Factor(factor.kind, inner)])


# --- axes that meet, or stand one behind the other ------------------------------------------------------------------


def met(entries: Sequence[Axis]) -> Axis | None:
    """The axis of operands that are broadcast together; ``None`` where elements would meet other values."""
    if len(entries) == 1:
        return entries[0]
    known = [entry for entry in entries if entry]
    leading = next((entry for entry in known if holds(entry, Kind.BATCH)), None)
    if leading is None or len(known) == 1:
        return reduce(_meet, known) if known else ()
    wanted = _parted(leading)
    fitting = (
        _parted(entry) == wanted if holds(entry, Kind.BATCH) else _is_constant_over(entry, *wanted) for entry in known
    )
    return axis([Factor(Kind.PLAIN, wanted[0]), *wanted[1]]) if all(fitting) else None


def _meet(left: Axis, right: Axis) -> Axis:
    """The most repetition that two axes of one size share; a constant axis is as repeated as any other."""
    if left == right or is_same(right):
        return left
    return right if is_same(left) else plain(extent(left))


def joined(entries: Sequence[Axis]) -> Axis | None:
    """Axes one behind the other: all with the batch around as much, or all without; ``None`` where they differ."""
    length = total(map(extent, entries))
    elements = [holds(entry, Kind.BATCH) for entry in entries]
    if not any(elements):
        return plain(length)
    return (
        _runs_of(entries[0], length) if all(elements) and len({_parted(entry)[1] for entry in entries}) == 1 else None
    )


def ranged(of: Axis, start: Size, step: Size, length: Size) -> Axis | None:
    """A range of an axis; of one with the batch all of it or whole runs around the batch, else ``None``."""
    if not holds(of, Kind.BATCH):
        return same(length) if is_same(of) else plain(length)
    if step != 1:
        return None
    return of if length == extent(of) else _runs_of(of, length) if runs(of, start) is not None else None


def runs(of: Axis, length: Size) -> tuple[Size, Axis] | None:
    """How often the whole batch, with what lies inside of it, goes into ``length``, and that run of it."""
    run = _parted(of)[1]
    times = quotient(length, extent(run))
    return None if times is None else (times, run)


def _runs_of(of: Axis, length: Size) -> Axis | None:
    found = runs(of, length)
    return None if found is None else axis([Factor(Kind.PLAIN, found[0]), *found[1]])


def _parted(of: Axis) -> tuple[Size, Axis]:
    """The values around the batch, and the batch with all that lies inside of it, whatever else is known of that."""
    place = place_of((of,))
    assert place is not None
    return place.outer, batch(next(factor.size for factor in of if factor.kind is Kind.BATCH), 1, place.inner)


def _is_constant_over(of: Axis, outer: Size, run: Axis) -> bool:
    """Whether the values along an axis of the same extent are those of each element alike, at the front of it."""
    copies = of[0].size if of[0].repeated else 1
    return is_same(of) or (outer == 1 and quotient(copies, run[0].size) is not None)
