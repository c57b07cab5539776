"""Regions that can each run as one step: no path leaves a region and comes back, alone or through other regions."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch.fx as fx

from lightint_compile.passes.ir.condensed_graph import on_cycles
from lightint_compile.passes.ir.node_queries import Dependencies

#: The copies of one region: for each copy its nodes, aligned.
Copies = tuple[tuple[fx.Node, ...], ...]


def convex(groups: Sequence[Copies], kept: Sequence[Copies], dependencies: Dependencies) -> list[Copies]:
    """``groups`` trimmed until they, with the groups already ``kept``, can each run as one step.

    The places of a region from which a path leads out and back are dropped from all its copies; a group that still
    closes a cycle with others is dropped whole, smallest first.
    """
    current = [group for group in groups if group and group[0]]
    for trim in (True, False):
        stuck = _in_cycles([*current, *kept], dependencies)
        if not stuck:
            return current
        if trim:
            current = [
                _trimmed(group, dependencies) if index in stuck else group for index, group in enumerate(current)
            ]
            current = [group for group in current if group[0]]
    while current and _in_cycles([*current, *kept], dependencies):
        current.remove(min(current, key=lambda group: len(group) * len(group[0])))
    return current


_SEVERAL = -1


def follow_one_another(group: Copies, dependencies: Dependencies) -> bool:
    """Whether some copy needs a result of another."""
    copy_of = {node: number for number, nodes in enumerate(group) for node in nodes}
    seen: dict[fx.Node, int] = {}
    for node in dependencies.order:
        reached = {seen[source] for source in dependencies.before(node) if source in seen}
        own = copy_of.get(node)
        if own is not None and reached - {own}:
            return True
        if own is not None or reached:
            seen[node] = own if own is not None else reached.pop() if len(reached) == 1 else _SEVERAL
    return False


def _in_cycles(groups: Sequence[Copies], dependencies: Dependencies) -> set[int]:
    """Numbers of the groups with a copy that never becomes ready when every copy is one step."""
    group_of = [number for number, group in enumerate(groups) for _ in group]
    pieces = [nodes for group in groups for nodes in group]
    return {group_of[step] for step in on_cycles(pieces, dependencies)}


def _trimmed(group: Copies, dependencies: Dependencies) -> Copies:
    dropped: set[int] = set()
    for nodes in group:
        leaving = _leaving_and_returning(set(nodes), dependencies)
        dropped.update(index for index, node in enumerate(nodes) if node in leaving)
    return tuple(tuple(node for index, node in enumerate(nodes) if index not in dropped) for nodes in group)


def _leaving_and_returning(inside: Collection[fx.Node], dependencies: Dependencies) -> set[fx.Node]:
    """The nodes of a region from which a path leads out of it and back into it."""
    positions = [dependencies.position[node] for node in inside]
    span = dependencies.order[min(positions) : max(positions) + 1]
    after_region: set[fx.Node] = set()
    for node in span:
        if node not in inside and any(s in inside or s in after_region for s in dependencies.before(node)):
            after_region.add(node)
    # Backwards: outside nodes on a path between two nodes of the region, then the region's nodes in front of those.
    between: set[fx.Node] = set()
    leaving: set[fx.Node] = set()
    for node in reversed(span):
        following = dependencies.after(node)
        if node in after_region and any(user in inside or user in between for user in following):
            between.add(node)
        elif node in inside and any(user in between or user in leaving for user in following):
            leaving.add(node)
    return leaving
