"""What a walk found at every node, remembered for the next walk: a pass changes few of the nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch.fx as fx

Found = TypeVar("Found")


@dataclass
class Memory(Generic[Found]):
    """What the last walk found at each node, and all that it was found from."""

    entries: dict[fx.Node, tuple[tuple[object, ...], Found]] = field(default_factory=dict)


class Walk(Generic[Found]):
    """One walk from the first node to the last, in which what is found at a node follows from the node and from what
    was found at its operands, and from nothing else.

    Where all of that is the very same as in the last walk, so is the result. Everything is compared by identity: a node
    has new arguments where one of them is replaced, and a new value where it is computed anew.
    """

    def __init__(self, memory: Memory[Found]) -> None:
        self._before = memory.entries
        self._now: dict[fx.Node, tuple[tuple[object, ...], Found]] = {}
        memory.entries = self._now

    def given(self, node: fx.Node, found: Found) -> Found:
        """What is known of ``node`` from elsewhere; of two that are equal, the one of the last walk."""
        before = self._before.get(node)
        if before is not None and before[1] == found:
            found = before[1]
        self._now[node] = ((), found)
        return found

    def at(self, node: fx.Node, find: Callable[[fx.Node], Found]) -> Found:
        """What was found at ``node`` in the last walk if it still holds, else what ``find`` finds."""
        read = (
            node.name,
            node.target,
            node.args,
            node.kwargs,
            node.meta.get("val"),
            *map(self._of, node.all_input_nodes),
        )
        before = self._before.get(node)
        if (
            before is not None
            and len(before[0]) == len(read)
            and all(a is b for a, b in zip(before[0], read, strict=True))
        ):
            found = before[1]
        else:
            found = find(node)
        self._now[node] = (read, found)
        return found

    def _of(self, node: fx.Node) -> object:
        return self._now[node][1]
