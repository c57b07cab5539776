"""Repeated isomorphic subgraphs: the blocks of a transformer, in every step of an unrolled loop.

Module paths propose where copies are; growing the copies in lockstep (``growth.py`` beside this file) decides what
belongs to them. Nodes without a module path (a block's method, a graph made by hand) are proposed by their structure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch.fx as fx

from lightint_compile.passes.analysis.regions.candidates import (
    Candidate,
    by_module,
    by_structure,
    is_list,
    movable,
    rephased,
)
from lightint_compile.passes.analysis.regions.convexity import convex, follow_one_another
from lightint_compile.passes.analysis.regions.growth import Slot, absorb, grow, recruit, whole_tuples
from lightint_compile.passes.analysis.regions.paths import common_path
from lightint_compile.passes.ir.decision_points import is_outlined
from lightint_compile.passes.ir.looks import Looks
from lightint_compile.passes.ir.node_data import Tokens
from lightint_compile.passes.ir.node_queries import MEMO, Dependencies
from lightint_compile.passes.ir.program import Program

#: Nodes that a region must have: below, calling it costs more than it saves.
MIN_NODES = 8

#: The part of the graph's nodes that outlining must save: for copies that follow one another, as blocks do, and for
#: copies that do not (the time embeddings of all steps), which run better as one piece of glue.
MIN_SAVED_CHAIN = 0.02
MIN_SAVED_PARALLEL = 0.25

#: What handing one value out of a region weighs, in nodes.
_HANDED_OVER = 2

#: The part of what a candidate could save at best that makes further candidates not worth growing.
_GOOD_ENOUGH = 0.9

#: The part of the free nodes that a group proposed by module paths must save to be taken without a look at structure.
_CLEAR = 0.3

#: How much more structure must save than module paths do: their borders are those that a person knows.
_TWICE = 2

#: Bounds on the work, well above what models need: candidates grown before the best is taken, and rounds of taking.
CANDIDATES_TRIED = 48
ROUNDS = 16


@dataclass(frozen=True)
class RegionGroup:
    """Copies of one region.

    Attributes:
        instances: for each copy its nodes; the same index is the same place in each copy.
        paths: for each copy the module it came from, empty where unknown.
    """

    instances: tuple[tuple[fx.Node, ...], ...]
    paths: tuple[str, ...]

    @property
    def mark(self) -> str | None:
        """What its results change with, where they are kept between calls; the same for all of its nodes."""
        mark: str | None = self.instances[0][0].meta.get(MEMO)
        return mark

    @property
    def size(self) -> int:
        """Nodes of one copy."""
        return len(self.instances[0])

    @cached_property
    def outputs(self) -> int:
        """Places whose value something outside reads, in any copy."""
        insides = [set(nodes) for nodes in self.instances]
        return sum(
            any(user not in inside for node, inside in zip(place, insides, strict=True) for user in node.users)
            for place in zip(*self.instances, strict=True)
        )

    @property
    def saved(self) -> int:
        """Nodes that need not be compiled when one copy stands for all."""
        return self.size * (len(self.instances) - 1)


@dataclass(frozen=True)
class Regions:
    """Groups of repeated regions. Regions do not overlap, and running each as one step leaves no cycle."""

    groups: tuple[RegionGroup, ...] = ()

    def __iter__(self) -> Iterator[RegionGroup]:
        return iter(self.groups)

    @classmethod
    def analyse(cls, program: Program) -> Self:
        """Find the regions of a program, those that save most first."""
        if is_outlined(program.graph_module, program.graph):
            return cls()
        return cls(tuple(_Search(program.graph, Tokens(program.memory(Looks))).run()))


class _Search:
    def __init__(self, graph: fx.Graph, tokens: Tokens) -> None:
        self._dependencies = Dependencies(graph)
        self._tokens = tokens
        self._free = movable(self._dependencies.order)
        self._by_token: dict[int, list[fx.Node]] = defaultdict(list)
        for node in self._free:
            self._by_token[self._tokens.of(node)].append(node)
        self._total = len(self._free)
        self._found: list[RegionGroup] = []
        self._marked: dict[str | None, frozenset[fx.Node]] = {}

    def run(self) -> list[RegionGroup]:
        """Take the best candidate's groups until none saves enough.

        Module paths are asked first, and structure where what they propose saves little: a norm of every block must not
        be taken out of blocks that have no module path of their own.
        """
        for _ in range(ROUNDS):
            if len(self._free) < max(2 * MIN_NODES, MIN_SAVED_CHAIN * self._total):
                break
            groups = self._best(by_module(self._free, self._tokens))
            if _worth(groups) < _CLEAR * len(self._free):
                groups = self._best(by_structure(self._free, self._tokens), _TWICE * _worth(groups)) or groups
            if not groups:
                break
            self._take(groups)
        return sorted(self._found, key=lambda group: -group.saved)

    def _best(self, candidates: Sequence[Candidate], least: int = 0) -> list[RegionGroup]:
        """The groups of the candidate whose groups are worth most, if that is more than ``least``."""
        ranked = sorted(candidates, key=lambda candidate: -candidate.bound)
        best: list[RegionGroup] = []
        chosen: Candidate | None = None
        for candidate in ranked[:CANDIDATES_TRIED]:
            if _worth(best) >= _GOOD_ENOUGH * candidate.bound:
                break
            groups = self._groups(candidate, max(least, _worth(best)))
            if groups:
                best, chosen = groups, candidate
        if chosen is not None and chosen.is_structural:
            for candidate in rephased([group.instances for group in best], chosen):
                best = self._groups(candidate, _worth(best)) or best
        return best

    def _take(self, groups: Sequence[RegionGroup]) -> None:
        self._found += groups
        taken = {node for group in groups for instance in group.instances for node in instance}
        self._free = [node for node in self._free if node not in taken]
        self._marked.clear()

    def _groups(self, candidate: Candidate, least: int) -> list[RegionGroup]:
        """The legal groups that a candidate grows to; none unless they are worth more than ``least``."""
        mark = candidate.anchors[0][0].meta.get(MEMO)
        free = set(self._free_of(mark))
        anchors = [slot for slot in candidate.anchors if slot[0].meta.get(MEMO) == mark]
        grown = []

        def allowed(copy: int, node: fx.Node) -> bool:
            return node.meta.get(MEMO) == mark and candidate.allowed(copy, node)

        for slots in _apart(grow(anchors, allowed, self._tokens), free):
            alike = [node for node in self._by_token[self._tokens.of(slots[0][0])] if node in free]
            full = absorb(recruit(slots, alike, free, self._tokens), free, self._tokens)
            grown.append(whole_tuples(full, self._dependencies.position))
            free.difference_update(node for slot in grown[-1] for node in slot)
        grown = [slots for slots in grown if len(slots) >= MIN_NODES]
        if sum(len(slots) * (len(slots[0]) - 1) for slots in grown) <= least:
            return []
        kept = [group.instances for group in self._found]
        legal = convex([_instances(slots) for slots in grown], kept, self._dependencies)
        groups = [_group(instances) for instances in legal if len(instances[0]) >= MIN_NODES]
        blocks = [group for group in groups if not is_list(group.paths[0], group.instances[0])]
        enough = [group for group in blocks if group.saved >= self._least(group)]
        return enough if _worth(enough) > least else []

    def _free_of(self, mark: str | None) -> frozenset[fx.Node]:
        """The free nodes of one mark."""
        if mark not in self._marked:
            self._marked[mark] = frozenset(node for node in self._free if node.meta.get(MEMO) == mark)
        return self._marked[mark]

    def _least(self, group: RegionGroup) -> float:
        chained = follow_one_another(group.instances, self._dependencies)
        return self._total * (MIN_SAVED_CHAIN if chained else MIN_SAVED_PARALLEL)


def _apart(groups: Sequence[list[Slot]], free: set[fx.Node]) -> list[list[Slot]]:
    """The groups without places that an earlier one holds a node of; what they hold is no longer ``free``.

    Copies that split into groups grow apart from each other, and without module paths into one another.
    """
    kept: list[list[Slot]] = []
    for slots in groups:
        own = [slot for slot in slots if free.issuperset(slot)]
        free.difference_update(node for slot in own for node in slot)
        kept += [own] if own else []
    return kept


def _instances(slots: Sequence[Slot]) -> tuple[tuple[fx.Node, ...], ...]:
    return tuple(zip(*slots, strict=True))


def _worth(groups: Sequence[RegionGroup]) -> int:
    """Nodes saved, less the cost of handing values over: of two phases of a repetition, the narrower border wins."""
    return sum(group.saved - _HANDED_OVER * len(group.instances) * group.outputs for group in groups)


def _group(instances: Sequence[tuple[fx.Node, ...]]) -> RegionGroup:
    return RegionGroup(tuple(instances), tuple(map(common_path, instances)))
