"""The nodes that bring a value from one cut to another: a slice, a gather, an exchange.

Collectives are torch's functional ones, or of their form: they take and give contiguous tensors, and a wait stands
behind each. Every rank has the same nodes in the same order; only the numbers of slices differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.fx as fx

from lightint_compile.kernels.exchange import EXCHANGE
from lightint_compile.passes.analysis.axes.factors import Place
from lightint_compile.passes.ir.fake_values import Size
from lightint_compile.passes.ir.op_arguments import rank_of, sizes_of
from lightint_compile.passes.ir.sizes import product
from lightint_compile.passes.ir.transfers import Exchange
from lightint_compile.passes.shard_sequence.teams import Team

aten = torch.ops.aten

Call = Callable[..., fx.Node]
"""Makes a node."""


class Collectives:
    """Makes the nodes, for one rank of a team.

    Args:
        by_copies: exchanges are :func:`~lightint_compile.kernels.exchange.exchange_rows`; the team is every rank then.

    Attributes:
        exchanges: those that were made.
    """

    def __init__(self, team: Team, call: Call, by_copies: bool = False) -> None:
        import torch.distributed._functional_collectives

        self._team, self._call, self._by_copies = team, call, by_copies
        self._ops = torch.ops._c10d_functional
        self.exchanges: list[Exchange] = []

    def take(self, value: fx.Node, place: Place, member: int | None = None) -> fx.Node:
        """A member's part of a value that every rank has all of, this rank's unless told otherwise; a view where it can
        be.
        """
        member, count = self._team.own if member is None else member, self._team.count
        if place.outer == 1 and isinstance(place.inner, int):
            start = member * place.inner
            return self._call(aten.slice.Tensor, value, place.axis, start, start + place.inner)
        parts = self._split(value, place.axis, (place.outer, count, place.inner))
        part = self._call(aten.select.int, parts, place.axis + 1, member)
        return self._call(aten.flatten.using_ints, part, place.axis, place.axis + 1)

    def extent(self, place: Place) -> Size:
        """How long an axis is that the members have parts of."""
        return product([place.outer, self._team.count, place.inner])

    def run(self, value: fx.Node, axis: int) -> fx.Node:
        """This rank's run of the heads, which lie on an axis, of a value that has all heads."""
        count = self._team.count
        return value if count == 1 else self.take(value, Place(axis, 1, sizes_of(value)[axis] // count))

    def gather(self, part: fx.Node, place: Place) -> fx.Node:
        """All of a value, from the parts of all ranks; of the team of every rank."""
        group = self._team.group
        flat = self._contiguous(self._call(aten.unsqueeze.default, part, 0))
        found = self._call(self._ops.all_gather_into_tensor.default, flat, group.count, group.group)
        return self._joined(self.arrived(found), place)

    def exchange(self, part: fx.Node, have: Place, want: Place) -> fx.Node:
        """A value cut in another place: every member sends each other one what that is to have."""
        count = self._team.count
        split = self._split(part, want.axis, (want.outer, count, want.inner))
        axes = list(range(rank_of(split)))
        front = [want.axis + 1, *(axis for axis in axes if axis != want.axis + 1)]
        ready = self._contiguous(self._call(aten.permute.default, split, front))
        sent = self._exchanged(ready)
        found = self.arrived(sent)
        self.exchanges.append(Exchange(ready, sent, found))
        behind = int(have.axis > want.axis)
        joined = self._joined(found, Place(have.axis + behind, have.outer, have.inner))
        return self._call(aten.flatten.using_ints, joined, want.axis, want.axis + 1)

    def around(self, value: fx.Node) -> fx.Node:
        """The start of sending a value ``[1, ...]`` to the member in front, as that behind sends its own to this one.

        What came is read from :meth:`arrived` of the node; until then it is on its way.
        """
        own = self._team.own
        return self._sent(value, self._team.rows(own + 1), self._team.rows(own - 1))

    def arrived(self, sent: fx.Node) -> fx.Node:
        """What a collective gave, once it is there."""
        return self._call(self._ops.wait_tensor.default, sent)

    def _exchanged(self, rows: fx.Node) -> fx.Node:
        if self._by_copies:
            return self._call(EXCHANGE, rows, self._team.group.group)
        everyone = self._team.rows(*range(self._team.count))
        return self._sent(rows, everyone, everyone)

    def _sent(self, rows: fx.Node, received: Sequence[int], sent: Sequence[int]) -> fx.Node:
        target = self._ops.all_to_all_single.default
        return self._call(target, rows, list(received), list(sent), self._team.group.group)

    def _joined(self, parts: fx.Node, place: Place) -> fx.Node:
        """Parts ``[ranks, ...]`` of all ranks as one value that is cut nowhere."""
        if place.axis == 0 and place.outer == 1:
            return self._call(aten.flatten.using_ints, parts, 0, 1)
        axis = place.axis + 1  # behind that of the ranks
        if place.outer == 1:
            order = [*range(1, axis), 0, *range(axis, rank_of(parts))]
            turned = self._call(aten.permute.default, parts, order)
            return self._call(aten.flatten.using_ints, turned, axis - 1, axis)
        split = self._split(parts, axis, (place.outer, place.inner))
        order = [*range(1, axis + 1), 0, *range(axis + 1, rank_of(split))]
        turned = self._call(aten.permute.default, split, order)
        return self._call(aten.flatten.using_ints, turned, axis - 1, axis + 1)

    def _split(self, value: fx.Node, axis: int, sizes: Sequence[Size]) -> fx.Node:
        """An axis as several; one of them may be of a size that only the call tells."""
        given = [size if isinstance(size, int) else -1 for size in sizes]
        return self._call(aten.unflatten.int, value, axis, given)

    def _contiguous(self, value: fx.Node) -> fx.Node:
        if value.meta["val"].is_contiguous():
            return value
        return self._call(aten.clone.default, value, memory_format=torch.contiguous_format)
