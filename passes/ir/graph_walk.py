"""Which nodes a walk through a graph reaches."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch.fx as fx


def reached(starts: Iterable[fx.Node], onward: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    """``starts`` and all that is reached from them; ``onward`` says where a walk goes from a node."""
    pending = list(starts)
    found = set(pending)
    while pending:
        for node in onward(pending.pop()):
            if node not in found:
                found.add(node)
                pending.append(node)
    return found
