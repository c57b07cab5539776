"""Regions that work for one other region alone become a part of it: one call then does what several did.

The search finds the projections of query and key as six copies of a small region, and what rotates and joins them as
three of another. In front of a write to a cache, where a block has to be cut, that would be three calls for one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile

import torch.fx as fx

from lightint_compile.passes.analysis.regions.candidates import is_list
from lightint_compile.passes.analysis.regions.convexity import Copies, convex
from lightint_compile.passes.ir.node_queries import Dependencies

_Feed = tuple[tuple[int, int], ...]
"""How one copy feeds another: the place of each value that is read, and the place of the node that reads it."""


def joined(groups: Sequence[Copies], dependencies: Dependencies) -> list[Copies]:
    """``groups`` with each one that only feeds another made a part of it, as long as there is one."""
    current = list(groups)
    while (pair := _pair(current, dependencies)) is not None:
        feeding, fed, whole = pair
        current = [group for group in current if group is not feeding and group is not fed]
        current.append(whole)
    return current


def _pair(groups: Sequence[Copies], dependencies: Dependencies) -> tuple[Copies, Copies, Copies] | None:
    """A group, the one that it feeds, and both as one."""
    for fed in groups:
        places = {node: (copy, place) for copy, nodes in enumerate(fed) for place, node in enumerate(nodes)}
        for feeding in groups:
            whole = _whole(feeding, fed, places) if feeding is not fed else None
            if whole is None:
                continue
            if not _in_one_place(whole, fed, feeding):
                continue
            others = [group for group in groups if group is not feeding and group is not fed]
            if convex([whole], others, dependencies) == [whole]:
                return feeding, fed, whole
    return None


def _in_one_place(whole: Copies, *parts: Copies) -> bool:
    """Whether a copy is in the module of one of its parts, and is no list of blocks: those that take turns stay so."""
    known = {common_path(nodes) for part in parts for nodes in part}
    paths = {nodes: common_path(nodes) for nodes in whole}
    return all(path in known and not is_list(path, nodes) for nodes, path in paths.items())


def _whole(feeding: Copies, fed: Copies, places: dict[fx.Node, tuple[int, int]]) -> Copies | None:
    """Both groups as one; ``None`` unless every copy of the second is fed alike, and nothing else reads the first."""
    if len(feeding) % len(fed):
        return None
    feeders: dict[int, list[tuple[_Feed, tuple[fx.Node, ...]]]] = defaultdict(list)
    for nodes in feeding:
        inside, copies, feed = set(nodes), set(), []
        for place, node in enumerate(nodes):
            for user in node.users:
                if user in inside:
                    continue
                if user not in places:
                    return None
                copy, at = places[user]
                copies.add(copy)
                feed.append((place, at))
        if len(copies) != 1:
            return None
        feeders[copies.pop()].append((tuple(sorted(feed)), nodes))
    ordered = [sorted(feeders[copy], key=lambda found: found[0]) for copy in range(len(fed))]
    rhythms = {tuple(feed for feed, _ in found) for found in ordered}
    if len(rhythms) != 1 or len(set(*rhythms)) != len(feeding) // len(fed):
        return None
    return tuple(
        tuple(node for _, nodes in found for node in nodes) + own for found, own in zip(ordered, fed, strict=True)
    )


def common_path(nodes: Sequence[fx.Node]) -> str:
    """The innermost module that all nodes with a module path are in, with the mark of its call."""
    stacks = [list(stack.values()) for node in nodes if (stack := node.meta.get("nn_module_stack"))]
    if not stacks:
        return ""
    plain = [str(stack[-1][0]).split("@")[0].split(".") for stack in stacks]
    common = [words[0] for words in takewhile(lambda words: len(set(words)) == 1, zip(*plain, strict=False))]
    path = ".".join(common)
    marked = (str(entry) for stack in stacks for entry, _ in stack if str(entry).split("@")[0] == path)
    return next(marked, path)
