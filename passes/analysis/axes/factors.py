"""An axis as an ordered product of factors, the outermost first, like the names in an einops pattern.

``[2 * B, heads, N, D]``, two branches one behind the other, has the first axis ``(plain 2)(batch B)``; tokens of all
elements in one row, ``[B * T, C]``, have ``(batch B)(plain T)``; ``repeat_interleave(x, 24)`` makes ``(plain T)(same
24)`` of an axis of T, ``x.repeat(2)`` makes ``(same 2)(plain T)``, and an expanded axis of one is ``(same 8)``. Rows
that are few values in any order, ``x[index]``, are ``(picked N)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple, TypeAlias

import torch.fx as fx

from lightint_compile.passes.analysis.axes.movement import Ref
from lightint_compile.passes.ir.fake_values import Size
from lightint_compile.passes.ir.sizes import dealt, groups, product


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


Axis: TypeAlias = tuple[Factor, ...]
Layout: TypeAlias = tuple[Axis, ...]

_MERGED = (Kind.PLAIN, Kind.SAME)


def axis(factors: Sequence[Factor]) -> Axis:
    """Factors in normal form: those of one dropped, plain or equal neighbours multiplied."""
    out: list[Factor] = []
    for factor in factors:
        if factor.size == 1:
            continue
        if out and out[-1].kind is factor.kind and factor.kind in _MERGED:
            out[-1] = Factor(factor.kind, product([out[-1].size, factor.size]))
        else:
            out.append(factor)
    return tuple(out)


def plain(size: Size) -> Axis:
    """An axis of which nothing is known."""
    return axis([Factor(Kind.PLAIN, size)])


def same(size: Size) -> Axis:
    """An axis along which nothing changes."""
    return axis([Factor(Kind.SAME, size)])


def shared(shape: Sequence[Size]) -> Layout:
    """The layout of a tensor of which nothing is known."""
    return tuple(map(plain, shape))


def extent(of: Axis) -> Size:
    """Values along an axis."""
    return product([factor.size for factor in of])


def without(of: Axis, kind: Kind) -> Size:
    """Values along an axis without its factors of a kind."""
    return product([factor.size for factor in of if factor.kind is not kind])


def is_same(of: Axis) -> bool:
    """Whether nothing changes along an axis longer than one."""
    return bool(of) and all(factor.repeated for factor in of)


def times(of: Axis, count: Size, kind: Kind, *, outside: bool) -> Axis:
    """An axis repeated as a whole, ``outside``, or value by value."""
    copies = Factor(kind, count)
    return axis([copies, *of] if outside else [*of, copies])


def regrouped(
    layout: Layout,
    shape: Sequence[Size],
    divides: Callable[[Factor], bool] = lambda factor: True,
    fits: Callable[[Axis], bool] = lambda found: True,
) -> list[tuple[range, range, list[Axis] | None]]:
    """A view to ``shape``, run by run: axes in front, axes behind, and these as factors.

    ``None`` for a run that is cut beside its factors, or into axes that do not fit.

    Args:
        divides: whether a factor may itself be cut.
        fits: whether an axis of the result will do.
    """

    def cut(factor: Factor, outer: Size, inner: Size) -> tuple[Factor, list[Factor]] | None:
        return (Factor(factor.kind, outer), [Factor(factor.kind, inner)]) if divides(factor) else None

    found: list[tuple[range, range, list[Axis] | None]] = []
    for before, behind in groups([extent(entry) for entry in layout], list(shape)):
        factors = axis([factor for dim in before for factor in layout[dim]])
        taken = dealt(factors, [shape[dim] for dim in behind], cut).to(len(behind))
        axes = None if taken is None else list(map(axis, taken))
        found.append((before, behind, axes if axes is not None and all(map(fits, axes)) else None))
    return found


def operand_layouts(
    demands: Iterable[tuple[Ref, Axis]], of: Callable[[fx.Node], Layout]
) -> dict[fx.Node, Layout] | None:
    """The layouts in which operands are read; ``None`` where one is read in two.

    Args:
        demands: what some axes are read as; the others are read as they are.
    """
    wanted: dict[Ref, Axis] = {}
    for ref, entry in demands:
        if wanted.setdefault(ref, entry) != entry:
            return None
    nodes = dict.fromkeys(ref.node for ref in wanted)
    return {node: tuple(wanted.get(Ref(node, axis), entry) for axis, entry in enumerate(of(node))) for node in nodes}
