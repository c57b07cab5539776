"""One ring site: attention to the keys that a rank has, while those of the next rank are on their way.

Every rank has the same nodes in the same order. Keys and values travel as one value; the transfer of the next part
starts in front of the attention to this one, and is waited for behind it.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.fx as fx

from lightint_compile.kernels import partial as _partial  # noqa: F401 - registers the operators
from lightint_compile.passes.analysis.axes.factors import Place
from lightint_compile.passes.ir.fake_values import Size
from lightint_compile.passes.ir.joins import Piece
from lightint_compile.passes.ir.op_arguments import argument, sizes_of
from lightint_compile.passes.shard_sequence.collectives import Call
from lightint_compile.passes.shard_sequence.masked import Causal, Given, Held, Masks, Unmasked
from lightint_compile.passes.shard_sequence.mesh import Mesh
from lightint_compile.passes.shard_sequence.ring import HEADS, TOKENS, Stretch

aten = torch.ops.aten
lightint = torch.ops.lightint


class Source(NamedTuple):
    """A stretch of keys: what this rank has of it, and how it is cut; ``None`` where every rank has all of it."""

    stretch: Stretch
    key: fx.Node
    value: fx.Node
    place: Place | None


class Part(NamedTuple):
    """Keys beside their values, ``[1, batch, heads, tokens, head_dim + value_dim]``, as they travel."""

    both: fx.Node
    held: tuple[Held, ...]


class _Keys(NamedTuple):
    """Keys and values that are attended to."""

    key: fx.Node
    value: fx.Node
    held: tuple[Held, ...]


class _Attended(NamedTuple):
    """Attention to some keys, and the log of the sum of exponentials of its scores."""

    out: fx.Node
    mass: fx.Node


def packed(source: Source, mesh: Mesh, call: Call) -> fx.Node:
    """What a rank has of a stretch that is cut, for its heads, as it travels."""
    assert source.place is not None
    key, value = _turned(source.key, source.stretch.key, call), _turned(source.value, source.stretch.value, call)
    both = mesh.to_heads(call(aten.cat.default, [key, value], -1), source.place)
    return call(aten.unsqueeze.default, both, 0)


def _turned(value: fx.Node, piece: Piece, call: Call) -> fx.Node:
    """A piece with the axes of attention."""
    for order in piece.layout:
        value = call(aten.permute.default, value, list(order))
    return value


class Site:
    """Writes the rounds of an attention.

    Args:
        node: the attention.
        query: the queries that this rank has, of its heads.
        tokens: how the ranks of a ring have the queries.
        keys: how many all ranks have together.
    """

    def __init__(self, node: fx.Node, mesh: Mesh, query: fx.Node, tokens: Place, keys: Size, call: Call) -> None:
        self._node, self._mesh, self._query, self._keys, self._call = node, mesh, query, keys, call
        self._masks = self._masks_of(tokens)
        self._dim = sizes_of(argument(node, "key"))[-1]
        self._both = self._dim + sizes_of(argument(node, "value"))[-1]
        self._here: list[_Keys] = []
        self._moving: list[Part] = []

    def add_whole(self, source: Source) -> None:
        """Keys that every rank has: attended to once, where they are."""
        key, value = (
            self._mesh.heads.run(_turned(each, piece, self._call), HEADS)
            for each, piece in ((source.key, source.stretch.key), (source.value, source.stretch.value))
        )
        self._here.append(_Keys(key, value, (Held(source.stretch.start, source.stretch.length),)))

    def add_kept(self, source: Source, parts: Sequence[fx.Node]) -> None:
        """Keys that went around before: the parts of all ranks, this rank's first."""
        self._here += [self._apart(self._part(source, both, number)) for number, both in enumerate(parts)]

    def add_moving(self, source: Source, part: fx.Node) -> None:
        """Keys that go around."""
        self._moving.append(self._part(source, part, 0))

    def written(self) -> fx.Node:
        """Attention to all keys, ``[batch, heads, tokens, value_dim]`` in the dtype of the queries."""
        part = self._joined()
        if part is None:
            return self._attend(self._here).out
        sent = self._mesh.around(part.both)
        found = self._attend([*self._here, self._apart(part)])
        for number in range(1, self._mesh.rounds):
            part = Part(self._mesh.ring.arrived(sent), tuple(map(self._next, part.held)))
            if number + 1 < self._mesh.rounds:
                sent = self._mesh.around(part.both)
            found = self._merged(found, self._attend([self._apart(part)]))
        return self._narrowed(found.out)

    def _masks_of(self, tokens: Place) -> Masks:
        mask, mesh = argument(self._node, "attn_mask"), self._mesh
        if argument(self._node, "is_causal"):
            return Causal(self._keys, tokens, self._query, mesh.ring, self._call)
        if mask is not None:
            return Given(mask, tokens, mesh.ring, mesh.heads, self._call)
        return Unmasked()

    def _part(self, source: Source, both: fx.Node, ahead: int) -> Part:
        """A part of the rank that is so many places ahead in the ring."""
        assert source.place is not None
        member = (self._mesh.own + ahead) % self._mesh.rounds
        place = self._mesh.place(source.place)
        return Part(both, (Held(source.stretch.start, source.stretch.length, place, member),))

    def _next(self, held: Held) -> Held:
        return held._replace(member=(held.member + 1) % self._mesh.rounds)

    def _joined(self) -> Part | None:
        """All that goes around, as one value."""
        if not self._moving:
            return None
        parts = [part.both for part in self._moving]
        both = parts[0] if len(parts) == 1 else self._call(aten.cat.default, parts, TOKENS + 1)
        return Part(both, tuple(held for part in self._moving for held in part.held))

    def _apart(self, part: Part) -> _Keys:
        both = self._call(aten.select.int, part.both, 0, 0)
        key, value = (
            self._call(aten.slice.Tensor, both, 3, *ends) for ends in ((0, self._dim), (self._dim, self._both))
        )
        return _Keys(key, value, part.held)

    def _attend(self, keys: Sequence[_Keys]) -> _Attended:
        key, value = (
            each[0] if len(each) == 1 else self._call(aten.cat.default, each, TOKENS)
            for each in ([one.key for one in keys], [one.value for one in keys])
        )
        mask = self._masks.of([held for each in keys for held in each.held])
        scale = argument(self._node, "scale")
        return self._results(lightint.partial_attention.default, self._query, key, value, mask, scale)

    def _merged(self, one: _Attended, other: _Attended) -> _Attended:
        return self._results(lightint.merge_attention.default, *one, *other)

    def _results(self, target: torch._ops.OpOverload, *args: object) -> _Attended:
        made = self._call(target, *args)
        return _Attended(*(self._call(operator.getitem, made, number) for number in (0, 1)))

    def _narrowed(self, out: fx.Node) -> fx.Node:
        dtype = self._query.meta["val"].dtype
        return out if out.meta["val"].dtype == dtype else self._call(aten._to_copy.default, out, dtype=dtype)
