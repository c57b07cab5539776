"""Streams, events and recordings of several ranks without a GPU: what happens before what, and which accesses race.

Each rank runs a program against a :class:`Rank`, which stands in for ``torch.cuda`` and for the memory of a group. What
it is given becomes nodes with edges: the order of streams, events, and barriers, of which the n-th on each rank is one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from lightint_compile.kernels import exchange_copies
from lightint_compile.kernels.exchange_copies import Lane


class Node(NamedTuple):
    """Something on a GPU: ``write`` to a slot of one's own, ``read`` of the same slot of all others, ``meet``."""

    kind: str
    lane: int
    slot: int
    before: frozenset[int]


@dataclass
class Graph:
    """What was recorded: nodes whose edges are among themselves, and those that end it."""

    nodes: list[Node] = field(default_factory=list)
    heads: dict[Stream, frozenset[int]] = field(default_factory=dict)
    ends: frozenset[int] = frozenset()


class Stream:
    """A stream of a rank."""

    def __init__(self, rank: Rank) -> None:
        self.rank = rank

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(Event(self.rank).of(other))

    def wait_event(self, event: Event) -> None:
        graph = self.rank.graph_of(self)
        if event.graph is not graph:
            assert graph is None and event.graph is self.rank.recorded, "a recording waits for what is not in it"
            self.rank.recorded.heads[self] = frozenset()
        self.rank.heads_for(self)[self] = self.rank.head(self) | event.nodes


class Event:
    """What a stream was given so far."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank

    def of(self, stream: Stream) -> Event:
        self.graph, self.nodes = self._rank.graph_of(stream), self._rank.head(stream)
        return self

    def record(self) -> None:
        self.of(self._rank.current)


class Rank:
    """A rank: its streams, what it was given, and its lanes."""

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count, self.device = rank, count, torch.device("cpu")
        self.nodes: list[Node] = []
        self.heads: dict[Stream, frozenset[int]] = {}
        self.recorded: Graph | None = None
        self.current = Stream(self)
        self.arrivals: list[Any] = []
        self.lanes = [Lane(self, place) for place in range(2)]  # type: ignore[arg-type]

    def graph_of(self, stream: Stream) -> Graph | None:
        return self.recorded if self.recorded is not None and stream in self.recorded.heads else None

    def heads_for(self, stream: Stream) -> dict[Stream, frozenset[int]]:
        graph = self.graph_of(stream)
        return self.heads if graph is None else graph.heads

    def head(self, stream: Stream) -> frozenset[int]:
        return self.heads_for(stream).get(stream, frozenset())

    def give(self, kind: str, lane: int, slot: int = 0) -> None:
        graph = self.graph_of(self.current)
        nodes = self.nodes if graph is None else graph.nodes
        nodes.append(Node(kind, lane, slot, self.head(self.current)))
        self.heads_for(self.current)[self.current] = frozenset((len(nodes) - 1,))

    def stage(self, rows: Any, lane: int, slot: int) -> None:
        self.give("write", lane, slot)

    def meet(self, lane: int) -> None:
        self.give("meet", lane)

    def pull(self, rows: Any, lane: int, slot: int) -> None:
        self.give("read", lane, slot)

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def begin(self) -> None:
        """Record what the current stream is given."""
        self.recorded = Graph()
        self.recorded.heads[self.current] = frozenset()

    def end(self) -> Graph:
        """What was recorded; all of it has to be in front of the end of the stream that it began on."""
        graph, self.recorded = self.recorded, None
        assert graph is not None
        graph.ends = graph.heads[self.current]
        past = _ancestors([node.before for node in graph.nodes])
        reached = {each for end in graph.ends for each in (end, *past[end])}
        assert all(heads <= reached for heads in graph.heads.values()), "work on a side stream was not joined"
        return graph

    def replay(self, graph: Graph) -> None:
        start, first = self.head(self.current), len(self.nodes)
        for node in graph.nodes:
            before = frozenset(first + each for each in node.before) or start
            self.nodes.append(node._replace(before=before))
        self.heads[self.current] = frozenset(first + each for each in graph.ends) or start

    def start(self) -> None:
        """An exchange, whose arrival is the last one then; recorded ones go in the other lane."""
        self.lanes[self.recorded is not None].start(torch.zeros(self.count, 4))

    def patches(self) -> dict[str, Any]:
        """What stands in for ``torch.cuda``."""
        return {
            "Stream": lambda device, priority: Stream(self),
            "Event": lambda: Event(self),
            "current_stream": lambda device=None: self.current,
            "stream": self.on,
            "device": lambda device: self.on(self.current),
            "is_current_stream_capturing": lambda: self.graph_of(self.current) is not None,
        }


def _ancestors(before: Sequence[Iterable[int]]) -> list[set[int]]:
    """All that is in front of each node; edges lead to later nodes."""
    found: list[set[int]] = []
    for each in before:
        found.append({*each}.union(*(found[one] for one in each)))
    return found


def races(ranks: Sequence[Rank]) -> list[str]:
    """Accesses to slots in an order that nothing holds up, and barriers that do not fit together."""
    keys = [[(rank, place) for place in range(len(each.nodes))] for rank, each in enumerate(ranks)]
    meets: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for rank, each in enumerate(ranks):
        counts: dict[int, int] = defaultdict(int)
        for place, node in enumerate(each.nodes):
            if node.kind == "meet":
                meets[node.lane, counts[node.lane]].append((rank, place))
                counts[node.lane] += 1
    if any(len(found) != len(ranks) for found in meets.values()):
        return ["a barrier is missing on a rank"]
    together = {one: found for found in meets.values() for one in found}
    before = {
        key: {(rank, one) for rank, place in together.get(key, [key]) for one in ranks[rank].nodes[place].before}
        for own in keys
        for key in own
    }
    past = _closed(before)
    return [*_wrong(ranks, past)]


def _closed(before: dict[tuple[int, int], set[tuple[int, int]]]) -> dict[tuple[int, int], set[tuple[int, int]]]:
    past: dict[tuple[int, int], set[tuple[int, int]]] = {}
    waiting = dict(before)
    while waiting:
        ready = [key for key, sources in waiting.items() if sources.isdisjoint(waiting)]
        assert ready, "ranks wait for each other for ever"
        for key in ready:
            past[key] = waiting[key].union(*(past[source] for source in waiting[key]))
            del waiting[key]
    return past


def _wrong(ranks: Sequence[Rank], past: dict[tuple[int, int], set[tuple[int, int]]]) -> Iterator[str]:
    places = [
        {
            (kind, lane): [place for place, node in enumerate(each.nodes) if (node.kind, node.lane) == (kind, lane)]
            for kind in ("write", "read")
            for lane in (0, 1)
        }
        for each in ranks
    ]
    for owner, lane in ((owner, lane) for owner in range(len(ranks)) for lane in (0, 1)):
        writes = places[owner]["write", lane]
        slots = [ranks[owner].nodes[place].slot for place in writes]
        for reader in (reader for reader in range(len(ranks)) if reader != owner):
            for number, (write, read) in enumerate(zip(writes, places[reader]["read", lane], strict=True)):
                if ranks[reader].nodes[read].slot != slots[number]:
                    yield f"exchange {number} is in different slots"
                if (owner, write) not in past[reader, read]:
                    yield f"exchange {number} is read before it is there"
                later = (place for place, slot in zip(writes, slots, strict=True) if place > write)
                following = next((p for p in later if ranks[owner].nodes[p].slot == slots[number]), None)
                if following is not None and (reader, read) not in past[owner, following]:
                    yield f"the slot of exchange {number} is written to while it is read"


def simulated(monkeypatch: Any, count: int, program: Any) -> list[Rank]:
    """Ranks that each ran ``program(rank)``."""
    ranks = []
    for number in range(count):
        with monkeypatch.context() as patched:
            rank = Rank.__new__(Rank)
            for name, value in Rank.patches(rank).items():
                patched.setattr(torch.cuda, name, value)
            rank.__init__(number, count)  # type: ignore[misc]
            patched.setattr(exchange_copies, "_register_work", lambda _, arrival, to=rank.arrivals: to.append(arrival))
            program(rank)
        ranks.append(rank)
    return ranks
