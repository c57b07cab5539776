"""Ring attention: what a site is whose heads the ranks do not divide, and which parts its keys have.

Queries stay with the rank that has their tokens, and the keys and values of each rank go around all of them (Liu,
Zaharia and Abbeel, "Ring Attention with Blockwise Transformers", 2023). Where a number of ranks divides the heads,
teams of so many first exchange tokens for heads among themselves as DeepSpeed-Ulysses does, and rings run between teams
(Fang and Zhao, "USP: A Unified Sequence Parallelism Approach", 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch.fx as fx

from lightint_compile.passes.analysis.attention_sites import ATTENTION
from lightint_compile.passes.analysis.axes.factors import Layout, Place, place_of
from lightint_compile.passes.ir.fake_values import Size
from lightint_compile.passes.ir.flops import bytes_of_value
from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.ir.joins import Piece, pieces_of
from lightint_compile.passes.ir.op_arguments import argument, rank_of, sizes_of
from lightint_compile.passes.ir.sizes import same, total
from lightint_compile.passes.shard_sequence.places import heads_of

HEADS, TOKENS = 1, 2
"""Axes of the operands of a ring, ``[batch, heads, tokens, ...]``."""


class Stretch(NamedTuple):
    """Keys that stand one behind the other, and their values.

    Attributes:
        key, value: what was concatenated to make the operands of attention.
        start, length: where they are among all keys, and how many.
    """

    key: Piece
    value: Piece
    start: Size
    length: Size


@dataclass(frozen=True)
class Candidate:
    """A dense attention whose heads the ranks do not divide.

    Attributes:
        stretches: its keys.
        joins: what lies between them and the attention, and only serves such sites.
    """

    stretches: tuple[Stretch, ...]
    joins: frozenset[fx.Node]


@dataclass(frozen=True)
class Ring:
    """How a site runs as a ring.

    Attributes:
        heads: how many the site has; where several share keys, key heads with them.
        team: ranks that exchange tokens for heads; one where every rank has all heads.
        query: how queries are cut into tokens.
        stretches: the keys.
        reads: how key and value of each stretch are cut; the layout of a whole value where every rank has all of it.
    """

    heads: str
    team: int
    query: Layout
    stretches: tuple[Stretch, ...]
    reads: tuple[tuple[Layout, Layout], ...]

    @property
    def places(self) -> list[Place | None]:
        """Where each stretch is cut on the axes of attention; ``None`` where every rank has all of it."""
        return [_place_in(each.key, key) for each, (key, _) in zip(self.stretches, self.reads, strict=True)]

    def operands(self, node: fx.Node) -> list[fx.Node]:
        """What the site reads: queries, the stretches of its keys, a mask."""
        pieces = (piece.node for each in self.stretches for piece in (each.key, each.value))
        mask = argument(node, "attn_mask")
        return list(dict.fromkeys([argument(node, "query"), *pieces, *([] if mask is None else [mask])]))


def candidates(graph: fx.Graph, ranks: int) -> dict[fx.Node, Candidate]:
    """Every dense attention with a batch, heads and tokens whose heads the ranks do not divide."""
    stretches = {}
    for node in graph.find_nodes(op="call_function", target=ATTENTION):
        found = _stretches(node) if _is_undivided(node, ranks) else None
        if found is not None:
            stretches[node] = found
    joins = _joins(graph, stretches)
    return {node: Candidate(found, joins) for node, found in stretches.items()}


def _is_undivided(node: fx.Node, ranks: int) -> bool:
    operands = [argument(node, name) for name in ("query", "key", "value")]
    if any(rank_of(operand) != 4 for operand in operands) or argument(node, "dropout_p"):
        return False
    if not all(isinstance(sizes_of(operand)[-1], int) for operand in operands):
        return False
    query, key, value = (sizes_of(operand)[HEADS] for operand in operands)
    if not isinstance(query, int) or not isinstance(key, int) or key != value or query % key:
        return False
    return heads_of(query, ranks) is None or (key != 1 and heads_of(key, ranks) is None)


def _stretches(node: fx.Node) -> tuple[Stretch, ...] | None:
    """The keys and values of a site side by side; ``None`` where they are made of other stretches."""
    keys, values = (list(pieces_of(argument(node, name), TOKENS)) for name in ("key", "value"))
    if len(keys) != len(values) or not all(same(a.length, b.length) for a, b in zip(keys, values, strict=True)):
        return None
    starts = [total(each.length for each in keys[:number]) for number in range(len(keys))]
    return tuple(Stretch(*each, each[0].length) for each in zip(keys, values, starts, strict=True))


def _joins(graph: fx.Graph, sites: Mapping[fx.Node, tuple[Stretch, ...]]) -> frozenset[fx.Node]:
    """Concatenations, and permutations of them, that nothing but such sites reads."""
    ends = {piece.node for found in sites.values() for each in found for piece in (each.key, each.value)}
    starts = [argument(node, name) for node in sites for name in ("key", "value")]
    between = reached(
        [node for node in starts if node not in ends],
        lambda node: [source for source in node.all_input_nodes if source not in ends],
    )
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node in between and all(user in found or user in sites for user in node.users):
            found.add(node)
    return frozenset(found)


def ring_of(
    node: fx.Node, stretches: tuple[Stretch, ...], ranks: int, query: Layout, cut: Callable[[fx.Node], Layout]
) -> Ring | str:
    """How a site runs as a ring, or why it does not.

    Args:
        query: how the queries are cut.
        cut: how ranks have keys or values; the layout of a whole value where each has all of it.
    """
    place = place_of(query)
    if place is None or place.axis != TOKENS:
        return "its queries are not dealt out by tokens"
    reads = tuple((cut(each.key.node), cut(each.value.node)) for each in stretches)
    found = Ring(_heads_of(node), 1, query, stretches, reads)
    values = [_place_in(each.value, value) for each, (_, value) in zip(stretches, reads, strict=True)]
    if found.places != values:
        return "keys and values are dealt out in different ways"
    if any(each is not None and each.axis != TOKENS for each in values):
        return "its keys are not dealt out by tokens"
    # Columns of a mask are slices, whose ends are numbers.
    masked = argument(node, "attn_mask") is not None or argument(node, "is_causal")
    lengths = (place.outer, place.inner, *(each.length for each in stretches))
    if masked and not all(isinstance(length, int) for length in lengths):
        return "only a call tells which keys its mask is for"
    around = [each for each, place in zip(stretches, values, strict=True) if place is not None]
    payload = sum(bytes_of_value(piece.node.meta["val"]) for each in around for piece in (each.key, each.value))
    return replace(found, team=_team(node, ranks, payload))


def _place_in(piece: Piece, layout: Layout) -> Place | None:
    """Where a piece is cut, on the axes of attention; ``None`` where it is whole."""
    place = place_of(layout)
    if place is None:
        return None
    axis = place.axis
    for order in piece.layout:
        axis = order.index(axis)
    return place._replace(axis=axis)


def _heads_of(node: fx.Node) -> str:
    query, key = (sizes_of(argument(node, name))[HEADS] for name in ("query", "key"))
    return f"{query}" if same(query, key) else f"{query} over {key}"


def _team(node: fx.Node, ranks: int, sent_around: int) -> int:
    """How many ranks exchange heads so that least is sent, where so many bytes of keys and values are cut."""
    query, key = (sizes_of(argument(node, name))[HEADS] for name in ("query", "key"))
    common = math.gcd(int(query), int(key), ranks)
    exchanged = sent_around + sum(bytes_of_value(each.meta["val"]) for each in (argument(node, "query"), node))

    def sent(team: int) -> float:
        return exchanged * (team - 1) / team + sent_around * (ranks // team - 1)

    return min(_divisors(common), key=sent)


def _divisors(number: int) -> Iterator[int]:
    return (each for each in range(1, number + 1) if number % each == 0)
