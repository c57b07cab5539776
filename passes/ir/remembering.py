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
    """One walk from the first node to the last, in which what is found at a node follows from the node, from its
    operands' values and what was found at them, and from nothing else.

    Where all of that is the very same as in the last walk, so is the result. Everything is compared by identity: a node
    has new arguments where one of them is replaced, and a new value where it is computed anew. What is found again and
    is equal counts as the very same, so that what changes at one node is followed only as far as it makes a difference.
    """

    def __init__(self, memory: Memory[Found]) -> None:
        self._before = memory.entries
        self._now: dict[fx.Node, tuple[tuple[object, ...], Found]] = {}
        memory.entries = self._now

    def given(self, node: fx.Node, found: Found) -> Found:
        """What is known of ``node`` from elsewhere; of what is equal to what the last walk found, that one."""
        return self._kept((), node, found)

    def at(self, node: fx.Node, find: Callable[[fx.Node], Found]) -> Found:
        """What was found at ``node`` in the last walk if it still holds, else what ``find`` finds."""
        operands = node.all_input_nodes
        read = (
            node.name,
            node.target,
            node.args,
            node.kwargs,
            node.meta.get("val"),
            *[operand.meta.get("val") for operand in operands],
            *[self._now[operand][1] for operand in operands],
        )
        before = self._before.get(node)
        if (
            before is not None
            and len(before[0]) == len(read)
            and all(a is b for a, b in zip(before[0], read, strict=True))
        ):
            self._now[node] = before
            return before[1]
        return self._kept(read, node, find(node))

    def _kept(self, read: tuple[object, ...], node: fx.Node, found: Found) -> Found:
        before = self._before.get(node)
        if before is not None and before[1] == found:
            found = before[1]
        self._now[node] = (read, found)
        return found
