"""Sizes of axes as numbers or expressions: compared and divided without guards, and cut into the axes of a view."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Generic, NamedTuple, Protocol, TypeVar

import sympy

from lightint_compile.passes.ir.fake_values import Size, plain


class Sized(Protocol):
    """A factor of an axis, whatever an analysis knows of it."""

    @property
    def size(self) -> Size:
        """Its extent."""
        ...


AnyFactor = TypeVar("AnyFactor", bound=Sized)
Entry = TypeVar("Entry")


@lru_cache(maxsize=65536)
def same(left: Size, right: Size) -> bool:
    """Whether two sizes are provably equal."""
    if left == right:
        return True
    if isinstance(left, int) and isinstance(right, int):
        return False
    return bool(sympy.expand(left - right) == 0)


@lru_cache(maxsize=65536)
def at_most(left: Size, right: Size) -> bool:
    """Whether a size is provably no larger than another, by the signs of symbols alone."""
    if isinstance(left, int) and isinstance(right, int):
        return left <= right
    return bool(sympy.expand(right - left).is_nonnegative)


@lru_cache(maxsize=65536)
def quotient(whole: Size, part: Size) -> Size | None:
    """``whole / part`` where that is provably an integer or an integer expression, else ``None``."""
    if isinstance(whole, int) and isinstance(part, int):
        return whole // part if part > 0 and whole % part == 0 else None
    if part == 0:
        return None
    ratio = sympy.cancel(sympy.sympify(whole) / part)
    return plain(ratio) if sympy.denom(sympy.together(ratio)) == 1 else None


def product(sizes: Sequence[Size]) -> Size:
    """The product of sizes."""
    total: Size = 1
    for size in sizes:
        total = plain(total * size)
    return total


def total(sizes: Iterable[Size]) -> Size:
    """The sum of sizes."""
    found: Size = 0
    for size in sizes:
        found = plain(found + size)
    return found


def replaced(axes: Sequence[Entry], dim: int, entry: Entry) -> tuple[Entry, ...]:
    """What is known of axes, with one of them replaced."""
    return (*axes[:dim], entry, *axes[dim + 1 :])


def groups(before: Sequence[Size], after: Sequence[Size]) -> list[tuple[range, range]]:
    """Runs of axes with equal products before and after a view, in order.

    Axes of size one join the run that follows.
    """
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


class Dealt(NamedTuple, Generic[AnyFactor]):
    """Factors dealt out to axes, as many axes as there are factors for, and the factors that are left."""

    axes: list[list[AnyFactor]]
    rest: list[AnyFactor]

    def to(self, count: int) -> list[list[AnyFactor]] | None:
        """The axes, where they are ``count`` and nothing is left."""
        return None if self.rest or len(self.axes) < count else self.axes


def dealt(
    factors: Sequence[AnyFactor],
    sizes: Sequence[Size],
    cut: Callable[[AnyFactor, Size, Size], tuple[AnyFactor, Sequence[AnyFactor]] | None],
) -> Dealt[AnyFactor]:
    """Factors, the outermost first, dealt out to axes of the given sizes until a cut falls beside them.

    Args:
        factors: one of one goes to an axis of one, or with what is beside it.
        cut: takes a factor apart into one of an outer size, and others of an inner size inside of it; ``None`` where it
            may not be.
    """
    rest = list(factors)
    axes: list[list[AnyFactor]] = []
    for last, wanted in ((place == len(sizes), size) for place, size in enumerate(sizes, start=1)):
        taken = [rest.pop(0)] if wanted == 1 and not last and rest and rest[0].size == 1 else []
        while wanted != 1 and rest:
            front = rest.pop(0)
            if (left := quotient(wanted, front.size)) is not None:
                taken.append(front)
                wanted = left
                continue
            inner = quotient(front.size, wanted)
            pieces = None if inner is None else cut(front, wanted, inner)
            if pieces is None:
                return Dealt(axes, [front, *rest])
            taken.append(pieces[0])
            rest[:0] = pieces[1]
            wanted = 1
        if wanted != 1:
            return Dealt(axes, rest)
        while last and rest and rest[0].size == 1:
            taken.append(rest.pop(0))
        axes.append(taken)
    return Dealt(axes, rest)
