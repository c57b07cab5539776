"""The two directions in which a ring site sends: heads to neighbours, keys and values around."""

from __future__ import annotations

import torch.fx as fx

from lightint_compile.passes.analysis.axes.factors import Place
from lightint_compile.passes.ir.flops import bytes_of_value
from lightint_compile.passes.ir.op_arguments import sizes_of
from lightint_compile.passes.ir.ranks import Ranks
from lightint_compile.passes.ir.sizes import product
from lightint_compile.passes.shard_sequence.collectives import Call, Collectives
from lightint_compile.passes.shard_sequence.ring import HEADS
from lightint_compile.passes.shard_sequence.teams import heads_and_ring


class Mesh:
    """Ranks in teams of ``size`` neighbours that exchange heads; rings run through all teams.

    Attributes:
        heads, ring: the collectives of each direction.
        rounds: how many ranks a ring has.
        own: which of them this one is.
        sent: bytes that one rank sends to others, symbolic sizes at their hints.
    """

    def __init__(self, ranks: Ranks, size: int, call: Call) -> None:
        neighbours, ring = heads_and_ring(ranks, size)
        self.heads, self.ring = Collectives(neighbours, call), Collectives(ring, call)
        self.rounds, self.own, self.sent, self._size = ring.count, ring.own, 0, size

    def place(self, tokens: Place) -> Place:
        """How tokens that are cut for all ranks are cut for those of a ring."""
        return tokens._replace(inner=product([self._size, tokens.inner]))

    def to_heads(self, value: fx.Node, tokens: Place) -> fx.Node:
        """All tokens of the team, of this rank's heads, of ``[batch, heads, tokens, ...]`` that is cut by tokens."""
        return self._exchanged(value, tokens, self._run(sizes_of(value)[HEADS] // self._size))

    def to_tokens(self, value: fx.Node, tokens: Place) -> fx.Node:
        """The way back: this rank's tokens, of all heads."""
        return self._exchanged(value, self._run(sizes_of(value)[HEADS]), tokens)

    def around(self, value: fx.Node) -> fx.Node:
        """See :meth:`Collectives.around`."""
        self.sent += bytes_of_value(value.meta["val"])
        return self.ring.around(value)

    def _run(self, heads: int) -> Place:
        return Place(HEADS, 1, heads)

    def _exchanged(self, value: fx.Node, have: Place, want: Place) -> fx.Node:
        if self._size == 1:
            return value
        self.sent += bytes_of_value(value.meta["val"]) * (self._size - 1) // self._size
        return self.heads.exchange(value, have, want)
