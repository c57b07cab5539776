"""The repeated blocks of a program, in order: which of them a node is in, and how many there are.

A block is told from its copies in other steps by its weights, or by the module it is: regions of the same weights are
one block, called again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.regions import RegionGroup, Regions
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import clean_path, generic_path


@dataclass(frozen=True)
class Block:
    """The place of a node.

    Attributes:
        region: the copy of the block, of one step.
        number: the block's number in the whole program.
        index: the block's number in its list, in the order of the program.
        count: blocks of the list.
    """

    region: int
    number: int
    index: int
    count: int


def blocks_of(program: Program) -> dict[fx.Node, Block]:
    """For each node of a repeated block its place; nodes elsewhere are left out.

    Blocks of one list of modules are counted together, and so are those of one group of regions without module paths.
    A region that is the same block in all its copies, as a time embedding of all steps is, repeats nothing.
    """
    position = {node: place for place, node in enumerate(program.graph.nodes)}
    lists: dict[Hashable, dict[Hashable, int]] = defaultdict(dict)
    copies: list[tuple[Sequence[fx.Node], Hashable, Hashable]] = []
    for number, group in enumerate(program.fact(Regions)):
        for nodes, (family, block) in zip(group.instances, _names(group, number), strict=True):
            start = min(map(position.__getitem__, nodes))
            lists[family][block] = min(start, lists[family].get(block, start))
            copies.append((nodes, family, block))
    ordered = {family: sorted(starts, key=starts.__getitem__) for family, starts in lists.items()}
    places = [(family, block, index) for family, blocks in ordered.items() for index, block in enumerate(blocks)]
    numbered = {(family, block): (number, index) for number, (family, block, index) in enumerate(places)}
    return {
        node: Block(region, *numbered[family, block], len(ordered[family]))
        for region, (nodes, family, block) in enumerate(copies)
        if len(ordered[family]) > 1
        for node in nodes
    }


def _names(group: RegionGroup, number: int) -> list[tuple[Hashable, Hashable]]:
    """For each copy of a region its list and its block; both are compared only."""
    modules = [_numbered(clean_path(path)) for path in group.paths]
    if all(modules):
        return [(generic_path(module), module) for module in modules]
    return [(number, _weights(nodes)) for nodes in group.instances]


def _numbered(path: str) -> str:
    """The innermost module with a number for a name that ``path`` is in; empty where it is in none."""
    words = path.split(".")
    behind = list(takewhile(lambda word: not word.isdigit(), reversed(words)))
    return ".".join(words[: len(words) - len(behind)])


def _weights(nodes: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
    """What the linears of a region multiply with; those of a block are in the same order in all steps."""
    linears = (node for node in nodes if node.target is torch.ops.aten.linear.default)
    return tuple(source for node in linears for source in node.all_input_nodes[1:])
