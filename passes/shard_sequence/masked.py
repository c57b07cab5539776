"""Masks of a ring: the rows of a rank's queries, and the columns of the keys that it has at the moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.axes.factors import Place
from lightint_compile.passes.ir.fake_values import Size
from lightint_compile.passes.ir.op_arguments import rank_of, sizes_of
from lightint_compile.passes.shard_sequence.collectives import Call, Collectives

aten = torch.ops.aten


class Held(NamedTuple):
    """Some keys.

    Attributes:
        start, length: the stretch among all keys that they are of.
        place: how the stretch is cut among the members of a ring, whatever its axis; ``None`` for all of it.
        member: whose part they are.
    """

    start: Size
    length: Size
    place: Place | None = None
    member: int = 0


class Masks(Protocol):
    """Makes the masks of a site."""

    def of(self, held: Sequence[Held]) -> fx.Node | None:
        """That of the rank's queries and such keys; ``None`` where every query sees every key."""


class Unmasked:
    """Every query sees every key."""

    def of(self, held: Sequence[Held]) -> None:
        """See :class:`Masks`."""


class Given:
    """Of a mask that every rank has all of, ``[..., heads or 1, queries or 1, keys or 1]``.

    Args:
        rows: how the queries are cut among the members of the ring.
        ring, heads: the ranks with the same heads, and those with the same tokens.
    """

    def __init__(self, mask: fx.Node, rows: Place, ring: Collectives, heads: Collectives, call: Call) -> None:
        self._ring, self._call = ring, call
        sizes = sizes_of(mask)
        axis = len(sizes) - 2
        if axis >= 0 and sizes[axis] != 1:
            mask = ring.take(mask, rows._replace(axis=axis))
        if axis >= 1 and sizes[axis - 1] != 1:
            mask = heads.run(mask, axis - 1)
        self._mask = mask

    def of(self, held: Sequence[Held]) -> fx.Node:
        """See :class:`Masks`."""
        if sizes_of(self._mask)[-1] == 1:
            return self._mask
        return columns(self._mask, held, self._ring, self._call)


class Causal:
    """Of the causal triangle of an attention: a query sees the keys up to its own number.

    Args:
        keys: how many there are on all ranks.
        query: the queries of this rank.
    """

    def __init__(self, keys: Size, rows: Place, query: fx.Node, ring: Collectives, call: Call) -> None:
        self._ring, self._call = ring, call
        device = query.meta["val"].device
        queries, self._keys = (
            call(aten.arange.default, count, device=device, pin_memory=False) for count in (ring.extent(rows), keys)
        )
        self._rows = call(aten.unsqueeze.default, ring.take(queries, rows._replace(axis=0)), 1)

    def of(self, held: Sequence[Held]) -> fx.Node:
        """See :class:`Masks`."""
        return self._call(aten.le.Tensor, columns(self._keys, held, self._ring, self._call), self._rows)


def columns(table: fx.Node, held: Sequence[Held], ring: Collectives, call: Call) -> fx.Node:
    """What the last axis of a table says of some keys, in their order."""
    axis, found = rank_of(table) - 1, []
    for each in held:
        stretch = call(aten.slice.Tensor, table, axis, each.start, each.start + each.length)
        place = each.place
        found.append(stretch if place is None else ring.take(stretch, place._replace(axis=axis), each.member))
    return found[0] if len(found) == 1 else call(aten.cat.default, found, axis)
