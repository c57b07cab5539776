"""Writing the rings of a program: keys that one site reads travel during its attention, others travel once.

Keys that several sites read, such as those of a context in every step, go around in front of the first of them, and
then every rank has them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TypeAlias

import torch.fx as fx

from lightint_compile.passes.analysis.axes.factors import Layout, place_of
from lightint_compile.passes.ir.node_queries import SEQUENCE
from lightint_compile.passes.ir.op_arguments import argument
from lightint_compile.passes.ir.ranks import Ranks
from lightint_compile.passes.ir.rewriter import Rewriter
from lightint_compile.passes.ir.sizes import total
from lightint_compile.passes.shard_sequence.mesh import Mesh
from lightint_compile.passes.shard_sequence.ring import Ring, Stretch
from lightint_compile.passes.shard_sequence.rounds import Site, Source, packed

Bring: TypeAlias = Callable[[fx.Node, Layout], fx.Node]
"""Gives a value in a layout."""

_Name: TypeAlias = tuple[object, ...]


class Rings:
    """Writes the rings of a program.

    Args:
        rings: all of them.
    """

    def __init__(self, ranks: Ranks, rings: Mapping[fx.Node, Ring], rewriter: Rewriter, bring: Bring) -> None:
        self._ranks, self._rewriter, self._bring = ranks, rewriter, bring
        self._readers = Counter(_name(each, ring.team) for ring in rings.values() for each in ring.stretches)
        self._order = {
            node: place for graph in {ring.graph for ring in rings} for place, node in enumerate(graph.nodes)
        }
        self._made = 0
        self._meshes: dict[int, Mesh] = {}
        self._went_around: dict[_Name, list[fx.Node]] = {}

    @property
    def sent(self) -> int:
        """Bytes that one rank sends to others, symbolic sizes at their hints."""
        return sum(mesh.sent for mesh in self._meshes.values())

    def write(self, node: fx.Node, ring: Ring) -> None:
        """Make an attention node the last step of its ring."""
        tokens = place_of(ring.query)
        assert tokens is not None
        mesh = self._meshes.setdefault(ring.team, Mesh(self._ranks, ring.team, self._call))
        query, sources = self._bring(argument(node, "query"), ring.query), self._sources(ring)
        kept = [self._kept(source, ring.team, mesh) for source in sources]
        with self._at(node):
            own = mesh.to_heads(query, tokens)
            site = Site(node, mesh, own, mesh.place(tokens), total(each.length for each in ring.stretches), self._call)
            for source, parts in zip(sources, kept, strict=True):
                if source.place is None:
                    site.add_whole(source)
                elif parts is not None:
                    site.add_kept(source, parts)
                else:
                    site.add_moving(source, packed(source, mesh, self._call))
            self._become(node, mesh.to_tokens(site.written(), tokens))

    def _at(self, node: fx.Node, like: fx.Node | None = None) -> AbstractContextManager[None]:
        self._made = 0
        return self._rewriter.at(node, rule="ring", like=like)

    def _call(self, target: Callable[..., object], *args: object, **kwargs: object) -> fx.Node:
        node = self._rewriter.call(target, *args, **kwargs)
        node.meta[SEQUENCE] = self._made = self._made + 1
        return node

    def _sources(self, ring: Ring) -> list[Source]:
        return [
            Source(each, self._bring(each.key.node, key), self._bring(each.value.node, value), place)
            for each, (key, value), place in zip(ring.stretches, ring.reads, ring.places, strict=True)
        ]

    def _kept(self, source: Source, team: int, mesh: Mesh) -> list[fx.Node] | None:
        """The parts of all ranks of keys that several sites read, this rank's first; ``None`` for others."""
        name = _name(source.stretch, team)
        if source.place is None or self._readers[name] == 1:
            return None
        if name not in self._went_around:
            ends = (source.stretch.key.node, source.key), (source.stretch.value.node, source.value)
            origin, last = max(ends, key=lambda end: self._order[end[0]])
            with self._at(last.next, like=origin):
                parts = [packed(source, mesh, self._call)]
                for _ in range(1, mesh.rounds):
                    parts.append(mesh.ring.arrived(mesh.around(parts[-1])))
            self._went_around[name] = parts
        return self._went_around[name]

    def _become(self, node: fx.Node, last: fx.Node) -> None:
        """Let ``node`` make the call of ``last``, which was made for it alone, and drop what only it read."""
        before = node.all_input_nodes
        node.target, node.args, node.kwargs = last.target, last.args, last.kwargs
        node.graph.erase_node(last)
        for source in before:
            self._rewriter.erase_unused(source)


def _name(stretch: Stretch, team: int) -> _Name:
    """What tells keys that travel from others; where they lie among all keys of a site does not."""
    return stretch.key.node, stretch.key.layout, stretch.value.node, stretch.value.layout, team
