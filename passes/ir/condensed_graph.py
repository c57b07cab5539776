"""The graph with groups of nodes contracted to one node each."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

import torch.fx as fx

from lightint_compile.passes.ir.node_queries import Dependencies


class Contraction:
    """Steps, who waits for whom, and an order in which they can run.

    Attributes:
        steps: the nodes of every step, in execution order within a step; the pieces come first, under their own number.
        step_of: the step that each node belongs to.
    """

    def __init__(self, pieces: Sequence[Iterable[fx.Node]], dependencies: Dependencies) -> None:
        self._position = dependencies.position
        self.steps = [sorted(piece, key=self._position.__getitem__) for piece in pieces]
        self.step_of = {node: number for number, piece in enumerate(self.steps) for node in piece}
        for node in dependencies.order:
            if node not in self.step_of:
                self.step_of[node] = len(self.steps)
                self.steps.append([node])
        self._sources = [self._before(number, dependencies) for number in range(len(self.steps))]

    def before(self, step: int) -> set[int]:
        """The steps that ``step`` directly waits for."""
        return self._sources[step]

    def _before(self, step: int, dependencies: Dependencies) -> set[int]:
        sources = {self.step_of[source] for node in self.steps[step] for source in dependencies.before(node)}
        return sources - {step}

    def order(self) -> list[int]:
        """The steps in an order in which they can run, close to the graph's own; steps on a cycle are missing."""
        waiting = [len(sources) for sources in self._sources]
        users: list[list[int]] = [[] for _ in self.steps]
        for step, sources in enumerate(self._sources):
            for source in sources:
                users[source].append(step)
        ready = [(self._first(step), step) for step, count in enumerate(waiting) if not count]
        heapq.heapify(ready)
        ordered = []
        while ready:
            _, step = heapq.heappop(ready)
            ordered.append(step)
            for user in users[step]:
                waiting[user] -= 1
                if not waiting[user]:
                    heapq.heappush(ready, (self._first(user), user))
        return ordered

    def _first(self, step: int) -> int:
        return self._position[self.steps[step][0]]


def on_cycles(pieces: Sequence[Iterable[fx.Node]], dependencies: Dependencies) -> set[int]:
    """The numbers of the pieces that never become ready where each is one step, and each other node is one.

    A set of pieces is an integer with their bits. Nodes are in execution order, so that what one outside of the pieces
    waits for is known before it is read.
    """
    position = dependencies.position
    piece_of = [-1] * len(dependencies.order)
    for number, piece in enumerate(pieces):
        for node in piece:
            piece_of[position[node]] = number
    bits = [1 << number for number in range(len(pieces))]
    awaited = [0] * len(pieces)
    behind = [0] * len(piece_of)
    for place, (own, sources) in enumerate(zip(piece_of, dependencies.sources, strict=True)):
        found = 0
        for source in sources:
            other = piece_of[source]
            if other < 0:
                found |= behind[source]
            elif other != own:
                found |= bits[other]
        if own < 0:
            behind[place] = found
        else:
            awaited[own] |= found
    return _never_ready(awaited)


def _never_ready(awaited: Sequence[int]) -> set[int]:
    """The numbers of the sets that do not become empty where each that is empty is taken out of all."""
    done, waiting = 0, list(range(len(awaited)))
    while True:
        left = []
        for number in waiting:
            if awaited[number] & ~done:
                left.append(number)
            else:
                done |= 1 << number
        if len(left) == len(waiting):
            return set(left)
        waiting = left
