"""Ranks that send to one another."""

from __future__ import annotations

from dataclasses import dataclass

from lightint_compile.passes.ir.ranks import Ranks


@dataclass(frozen=True)
class Team:
    """Some ranks of the group, in order.

    A team has no process group of its own, which all ranks would have to make together: it sends within the group of
    all, to the others nothing.

    Attributes:
        group: all ranks.
        members: those of the team.
        own: which of them this process is.
    """

    group: Ranks
    members: tuple[int, ...]
    own: int

    @classmethod
    def of_all(cls, ranks: Ranks) -> Team:
        """The team of every rank."""
        return cls(ranks, tuple(range(ranks.count)), ranks.rank)

    @property
    def count(self) -> int:
        """How many members there are."""
        return len(self.members)

    def rows(self, *members: int) -> list[int]:
        """How many rows go to, or come from, each rank: one to each of these members, counted around the team."""
        given = {self.members[member % self.count] for member in members}
        return [int(rank in given) for rank in range(self.group.count)]


def heads_and_ring(ranks: Ranks, size: int) -> tuple[Team, Team]:
    """The ranks that exchange heads with this one, ``size`` neighbours, and those that have the same heads."""
    ring, own = divmod(ranks.rank, size)
    neighbours = tuple(range(ring * size, (ring + 1) * size))
    return Team(ranks, neighbours, own), Team(ranks, tuple(range(own, ranks.count, size)), ring)
