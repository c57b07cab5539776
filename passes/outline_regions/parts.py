"""Large glue is cut where little crosses the cut.

What is compiled side by side is done when the largest piece is. In front of the first block a model computes cameras,
positions and conditioning, hundreds of operations that run once a call; fused or not makes no difference to a call, and
compiling them as one takes as long as compiling several blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch.fx as fx

from lightint_compile.passes.ir.fake_values import hint_of
from lightint_compile.passes.ir.memory_sharing import alias_source
from lightint_compile.passes.ir.node_queries import is_ordered
from lightint_compile.passes.ir.program import tensor_of
from lightint_compile.passes.ir.transfers import waits_for_copies

LARGEST = 150
"""Operations of a piece up to which it stays whole. A block of a world model is some hundred."""

WIDEST = 1 << 22
"""Elements that may cross a cut: to write and read them takes a GPU microseconds."""

_TRIED = 200
"""Places that are looked at for a cut."""


def parts(nodes: Sequence[fx.Node]) -> list[list[fx.Node]]:
    """Glue in parts of at most :data:`LARGEST` operations, as far as it can be cut.

    Args:
        nodes: in execution order; none waits for another one through what is not among them.

    Returns:
        Parts in execution order, of which later ones read earlier ones and never the other way round.
    """
    if len(nodes) <= LARGEST:
        return [list(nodes)]
    cuts = [(crossing, part) for part in _halves(nodes) if (crossing := _crossing(*part)) <= WIDEST]
    if not cuts:
        return [list(nodes)]
    _, halves = min(cuts, key=lambda cut: cut[0])
    return [part for half in halves for part in parts(half)]


def _halves(nodes: Sequence[fx.Node]) -> Iterator[tuple[list[fx.Node], list[fx.Node]]]:
    """``nodes`` in two, near the middle: views and sizes that only the second half reads are made there."""
    third = len(nodes) // 3
    for place in range(third, len(nodes) - third + 1, max(1, third // _TRIED)):
        first, second = list(nodes[:place]), list(nodes[place:])
        inside = set(second)
        late: list[fx.Node] = []
        for node in reversed(first):
            if _may_wait(node) and node.users and inside.issuperset(node.users):
                inside.add(node)
                late.append(node)
        moved = set(late)
        kept = [node for node in first if node not in moved]
        if len(kept) > third // 2:
            yield kept, [*reversed(late), *second]


def _may_wait(node: fx.Node) -> bool:
    return (alias_source(node) is not None or tensor_of(node) is None) and not is_ordered(node)


def _crossing(first: Sequence[fx.Node], second: Sequence[fx.Node]) -> float:
    """Elements that the second half reads of the first; infinite where a tuple, a number or a transfer would cross."""
    inside = set(second)
    total = 0.0
    for node in first:
        if inside.isdisjoint(node.users):
            continue
        value = tensor_of(node)
        if value is None or any(waits_for_copies(user) for user in node.users if user in inside):
            return math.inf
        total += math.prod(map(hint_of, value.shape))
    return total
