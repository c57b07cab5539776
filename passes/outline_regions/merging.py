"""Pieces that always run together become one piece: one call then does what several did.

A block that writes to a cache is cut at the writes, and what is left in front of one may come in several groups: the
norm and the value projection once a block, the projections of query and key twice, what rotates them twice more. Every
call costs the host some microseconds, and a border between two pieces is a value that is written and read back.

Two groups of pieces are merged when their copies fall into equal bundles (one norm with its two projections, in every
block), each bundle can run as one step, and all bundles are the same function. So the number of distinct pieces, which
is what compile time grows with, never gets larger.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import TypeAlias

import torch.fx as fx

from lightint_compile.passes.analysis.regions.candidates import is_list
from lightint_compile.passes.analysis.regions.paths import common_path
from lightint_compile.passes.ir.condensed_graph import on_cycles
from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.ir.node_queries import Dependencies
from lightint_compile.passes.outline_regions.forms import Forms
from lightint_compile.passes.outline_regions.host_work import runs_on_host
from lightint_compile.passes.outline_regions.pieces import Piece

_Bundle: TypeAlias = tuple[int, ...]
"""Numbers of pieces that become one, in the order of the graph."""


def merged(pieces: Sequence[Piece], boundaries: Set[fx.Node], dependencies: Dependencies, forms: Forms) -> list[Piece]:
    """``pieces`` with groups merged as long as two of them can be.

    Args:
        boundaries: values after which a new piece has to begin.
    """
    current = list(pieces)
    while (found := _Merging(current, boundaries, dependencies, forms).first()) is not None:
        current = found
    return current


@dataclass
class _Merging:
    pieces: list[Piece]
    boundaries: Set[fx.Node]
    dependencies: Dependencies
    forms: Forms

    def __post_init__(self) -> None:
        self._group_of: dict[int, int] = {}
        self._groups: dict[int, list[int]] = defaultdict(list)
        for number, piece in enumerate(self.pieces):
            if _may_merge(piece):
                group = self._group_of[number] = self._form(piece)
                self._groups[group].append(number)
        self._piece_of = {node: number for number in self._group_of for node in self.pieces[number].nodes}

    def first(self) -> list[Piece] | None:
        """The pieces after the first merge that is possible; ``None`` where there is none."""
        for feeding, fed, edges in self._feeds():
            bundles = self._bundles(self._groups[feeding] + self._groups[fed], edges)
            if bundles and (whole := self._joined(bundles)) is not None:
                return whole
        return None

    def _feeds(self) -> list[tuple[int, int, set[tuple[int, int]]]]:
        """Groups of which one reads the other, with the pieces that do; values at boundaries end a piece."""
        edges: dict[tuple[int, int], set[tuple[int, int]]] = defaultdict(set)
        ending = {self._piece_of[node] for node in self.boundaries if node in self._piece_of}
        for node, number in self._piece_of.items():
            if number in ending or len(self._groups[self._group_of[number]]) < 2:
                continue
            for user in node.users:
                other = self._piece_of.get(user, number)
                if self._group_of[other] != self._group_of[number]:
                    edges[self._group_of[number], self._group_of[other]].add((number, other))
        return [(feeding, fed, found) for (feeding, fed), found in edges.items()]

    def _bundles(self, members: Sequence[int], edges: Set[tuple[int, int]]) -> list[_Bundle]:
        """The members that hang together; none unless all bundles have as many of each group."""
        neighbours: dict[int, set[int]] = defaultdict(set)
        for one, other in edges:
            neighbours[one].add(other)
            neighbours[other].add(one)
        seen: set[int] = set()
        bundles: list[_Bundle] = []
        for member in members:
            if member not in seen:
                together = reached([member], lambda number: neighbours[number])
                seen |= together
                bundles.append(tuple(sorted(together, key=self._place)))
        shapes = {tuple(sorted(self._group_of[number] for number in bundle)) for bundle in bundles}
        return bundles if len(shapes) == 1 and 1 < len(bundles) < len(members) else []

    def _joined(self, bundles: Sequence[_Bundle]) -> list[Piece] | None:
        """The pieces with each bundle as one; ``None`` where they cannot be, or are not all the same function."""
        made = [piece for bundle in bundles if (piece := self._piece(bundle)) is not None]
        if len(made) < len(bundles) or len({self._form(piece) for piece in made}) > 1:
            return None
        gone = {number for bundle in bundles for number in bundle}
        pieces = [piece for number, piece in enumerate(self.pieces) if number not in gone] + made
        closed = on_cycles([piece.nodes for piece in pieces], self.dependencies)
        return None if closed else pieces

    def _piece(self, bundle: _Bundle) -> Piece | None:
        """A bundle as one piece, in the module of one of its parts; lists of blocks that take turns stay apart."""
        parts = [self.pieces[number] for number in bundle]
        nodes = sorted((node for part in parts for node in part.nodes), key=self.dependencies.position.__getitem__)
        path = common_path(nodes)
        if path not in {common_path(part.nodes) for part in parts} or is_list(path, nodes):
            return None
        kind = "block" if any(part.kind == "block" for part in parts) else "glue"
        return Piece(kind, nodes, path=path, is_region=any(part.is_region for part in parts))

    def _form(self, piece: Piece) -> int:
        return self.forms.of(piece.nodes, exact=piece.kind == "block").key

    def _place(self, number: int) -> int:
        return min(map(self.dependencies.position.__getitem__, self.pieces[number].nodes))


def _may_merge(piece: Piece) -> bool:
    return piece.kind in ("block", "glue") and piece.memo is None and not runs_on_host(piece.nodes)
