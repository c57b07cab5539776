"""Bringing a tensor from the axes it has to the axes an operator wants, in as few layout operations as possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from lightint_compile.passes.canonicalize_attention.axes import Axes, Axis, atoms, resolved


class Ops(Protocol):
    """The few operations that a fused attention is built from; made once on FX nodes and once on real tensors."""

    def permute(self, value: Any, order: Sequence[int]) -> Any:
        """Reorder dimensions."""

    def squeeze(self, value: Any, dims: Sequence[int]) -> Any:
        """Drop dimensions of size one."""

    def unsqueeze(self, value: Any, dim: int) -> Any:
        """Insert a dimension of size one."""

    def expand(self, value: Any, axes: Axes) -> Any:
        """Repeat dimensions of size one until the sizes are those of ``axes``."""

    def reshape(self, value: Any, axes: Axes) -> Any:
        """Regroup dimensions to ``axes``."""


def arrange(ops: Ops, value: Any, axes: Axes, target: Axes, *, fill: bool = True) -> Any:
    """``value``, whose axes are ``axes``, with the axes ``target``.

    An axis of the target that the value lacks is repeated (``fill``) or becomes one of size one (for a mask, which
    broadcasts). The value has no axis that the target lacks.
    """
    have, want = resolved(axes), resolved(target)
    if have == want:
        return value
    pieces = tuple(piece for axis in have for piece in _pieces(axis, want))
    if pieces != have:
        value = ops.reshape(value, pieces)
    parts = [_wanted_parts(axis, pieces, fill) for axis in want]
    slots = [slot for part in parts for slot in part]
    value, present = _order(ops, value, pieces, slots)
    filled = [slot if fill or len(part) > 1 else held for part, slot, held in _by_part(parts, present)]
    if filled != present:
        value = ops.expand(value, tuple(filled))
    return ops.reshape(value, _merged(parts, filled)) if any(len(part) != 1 for part in parts) else value


def _pieces(axis: Axis, want: Axes) -> list[Axis]:
    """An axis as it is if the target has it whole, else its atoms."""
    return [axis] if axis in want or not axis else [(atom,) for atom in axis]


def _wanted_parts(axis: Axis, pieces: Axes, fill: bool) -> list[Axis]:
    """A target axis as the pieces it is put together from."""
    if axis in pieces or len(axis) <= 1 or not (fill or any((atom,) in pieces for atom in axis)):
        return [axis]
    return [(atom,) for atom in axis]


def _order(ops: Ops, value: Any, pieces: Axes, slots: Sequence[Axis]) -> tuple[Any, list[Axis]]:
    """Permute the pieces into their slots; a slot without a piece gets a dimension of size one."""
    spare = [index for index, piece in enumerate(pieces) if not piece]
    chosen = [pieces.index(slot) if slot and slot in pieces else None for slot in slots]
    chosen = [spare.pop(0) if index is None and spare else index for index in chosen]
    if spare:
        value = ops.squeeze(value, spare)
    kept = [index for index in range(len(pieces)) if index not in spare]
    order = [kept.index(index) for index in chosen if index is not None]
    if order != sorted(order):
        value = ops.permute(value, order)
    for position, index in enumerate(chosen):
        if index is None:
            value = ops.unsqueeze(value, position)
    return value, [
        slot if index is not None and pieces[index] else () for slot, index in zip(slots, chosen, strict=True)
    ]


def _by_part(parts: Sequence[Sequence[Axis]], present: Sequence[Axis]) -> list[tuple[Sequence[Axis], Axis, Axis]]:
    owners = [(part, slot) for part in parts for slot in part]
    return [(part, slot, held) for (part, slot), held in zip(owners, present, strict=True)]


def _merged(parts: Sequence[Sequence[Axis]], filled: Sequence[Axis]) -> Axes:
    rest = list(filled)
    return tuple(tuple(atom for _ in part for atom in rest.pop(0)) for part in parts)


class Tally:
    """Counts the operations that :func:`arrange` would make; a repeat or a regrouping weighs more than a view."""

    def __init__(self) -> None:
        self.cost = 0

    def permute(self, value: Any, order: Sequence[int]) -> Any:
        """One view."""
        return self._add(1)

    def squeeze(self, value: Any, dims: Sequence[int]) -> Any:
        """One view."""
        return self._add(1)

    def unsqueeze(self, value: Any, dim: int) -> Any:
        """One view."""
        return self._add(1)

    def expand(self, value: Any, axes: Axes) -> Any:
        """One view that makes the operator read more."""
        return self._add(2)

    def reshape(self, value: Any, axes: Axes) -> Any:
        """Perhaps a copy."""
        return self._add(2)

    def _add(self, cost: int) -> None:
        self.cost += cost


def cost_of(axes: Axes, target: Axes) -> int:
    """What :func:`arrange` would cost."""
    tally = Tally()
    arrange(tally, None, axes, target)
    return tally.cost


def is_reachable(axes: Axes, target: Axes) -> bool:
    """Whether every axis of the value is one of the target's."""
    wanted = {atom for axis in target for atom in atoms(axis)}
    return all(atom in wanted for axis in axes for atom in atoms(axis))
