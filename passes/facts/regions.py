"""Repeated isomorphic subgraphs: the blocks of a transformer, in every step of an unrolled loop.

Module paths propose where copies are; growing the copies in lockstep (:mod:`~passes.outlining.growth`) decides what
belongs to them. What has no module path (a block's method, a graph made by hand) is proposed by the look of its nodes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch.fx as fx
from lightint_compile.passes.outlining.candidates import Candidate, by_module, by_structure, movable
from lightint_compile.passes.outlining.convexity import convex, follow_one_another
from lightint_compile.passes.outlining.growth import Slot, grow, recruit, whole_tuples
from lightint_compile.passes.outlining.nodes import Dependencies
from lightint_compile.passes.outlining.values import Tokens
from lightint_compile.passes.program import Program
from lightint_compile.passes.remarks import module_path_of

#: Nodes that a region must have: below, calling it costs more than it saves.
MIN_NODES = 8

#: The part of the graph's nodes that outlining must save: for copies that follow one another, as blocks do, and for
#: copies that do not (the time embeddings of all steps), which run better as one piece of glue.
MIN_SAVED_CHAIN = 0.02
MIN_SAVED_PARALLEL = 0.25

#: Bounds on the work, well above what models need: candidates grown before the best is taken, and candidates taken.
CANDIDATES_TRIED = 48
ROUNDS = 8


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
    def size(self) -> int:
        """Nodes of one copy."""
        return len(self.instances[0])

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
        if any(node.op == "call_module" for node in program.graph.nodes):
            return cls()
        return cls(tuple(_Search(program.graph).run()))


class _Search:
    def __init__(self, graph: fx.Graph) -> None:
        self._dependencies = Dependencies(graph)
        self._tokens = Tokens()
        self._free = movable(self._dependencies.order)
        self._by_token: dict[int, list[fx.Node]] = defaultdict(list)
        for node in self._free:
            self._by_token[self._tokens.of(node)].append(node)
        self._total = len(self._free)
        self._found: list[RegionGroup] = []

    def run(self) -> list[RegionGroup]:
        """Take the best candidate's groups until none saves enough; module paths first, structure for the rest."""
        for propose in (by_module, by_structure):
            for _ in range(ROUNDS):
                enough = len(self._free) >= max(2 * MIN_NODES, MIN_SAVED_CHAIN * self._total)
                if not enough or not self._round(propose(self._free, self._tokens)):
                    break
        return sorted(self._found, key=lambda group: -group.saved)

    def _round(self, candidates: Sequence[Candidate]) -> bool:
        ranked = sorted(candidates, key=lambda candidate: -candidate.bound)
        best: list[RegionGroup] = []
        for candidate in ranked[:CANDIDATES_TRIED]:
            if candidate.bound <= _saved(best):
                break
            groups = self._groups(candidate)
            if _saved(groups) > _saved(best):
                best = groups
        self._found += best
        taken = {node for group in best for instance in group.instances for node in instance}
        self._free = [node for node in self._free if node not in taken]
        return bool(best)

    def _groups(self, candidate: Candidate) -> list[RegionGroup]:
        free = set(self._free)
        grown = []
        for slots in grow(candidate.anchors, candidate.allowed, self._tokens):
            alike = [node for node in self._by_token[self._tokens.of(slots[0][0])] if node in free]
            grown.append(whole_tuples(recruit(slots, alike, free, self._tokens)))
            free.difference_update(node for slot in grown[-1] for node in slot)
        kept = [group.instances for group in self._found]
        legal = convex([_instances(slots) for slots in grown], kept, self._dependencies)
        groups = [_group(instances) for instances in legal if len(instances[0]) >= MIN_NODES]
        return [group for group in groups if group.saved >= self._least(group)]

    def _least(self, group: RegionGroup) -> float:
        chained = follow_one_another(group.instances, self._dependencies)
        return self._total * (MIN_SAVED_CHAIN if chained else MIN_SAVED_PARALLEL)


def _instances(slots: Sequence[Slot]) -> tuple[tuple[fx.Node, ...], ...]:
    return tuple(zip(*slots, strict=True))


def _saved(groups: Sequence[RegionGroup]) -> int:
    return sum(group.saved for group in groups)


def _group(instances: Sequence[tuple[fx.Node, ...]]) -> RegionGroup:
    return RegionGroup(tuple(instances), tuple(map(_common_path, instances)))


def _common_path(nodes: Sequence[fx.Node]) -> str:
    """The innermost module that all nodes with a module path are in."""
    stacks = [list(stack.values()) for node in nodes if (stack := node.meta.get("nn_module_stack"))]
    if not stacks:
        return ""
    common = [str(path) for path, _ in stacks[0]]
    for stack in stacks[1:]:
        paths = {str(path) for path, _ in stack}
        common = [path for path in common if path in paths]
    return common[-1] if common else module_path_of(nodes[0])
