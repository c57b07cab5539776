"""Which nodes a walk through a graph reaches."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

Place = TypeVar("Place", bound=Hashable)


def reached(starts: Iterable[Place], onward: Callable[[Place], Iterable[Place]]) -> set[Place]:
    """``starts`` and all that is reached from them; ``onward`` says where a walk goes from a node."""
    pending = list(starts)
    found = set(pending)
    while pending:
        for node in onward(pending.pop()):
            if node not in found:
                found.add(node)
                pending.append(node)
    return found
