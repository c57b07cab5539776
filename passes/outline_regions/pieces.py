"""The graph cut into pieces that run as one step each: the repeated regions, and the glue between them.

Glue is cut by level: the number of regions and loop boundaries on the longest way to a node. Nodes of one level never
wait for each other through another level, so no cut closes a cycle. Within a level, connected glue that occurs on
several levels is one piece, called on each; the rest of a level is one piece.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.regions import RegionGroup
from lightint_compile.passes.ir.condensed_graph import Contraction
from lightint_compile.passes.ir.memory_sharing import alias_source
from lightint_compile.passes.ir.node_data import Tokens
from lightint_compile.passes.ir.node_queries import (
    MEMO,
    MEMO_PLACE,
    Dependencies,
    is_control,
    is_element,
    is_movable,
    is_scalar,
    is_tuple,
)
from lightint_compile.passes.ir.transfers import waits_for_copies
from lightint_compile.passes.outline_regions.forms import form_of
from lightint_compile.passes.outline_regions.host_work import ON_HOST, mark_host_work
from lightint_compile.passes.outline_regions.parts import parts


@dataclass
class Piece:
    """Nodes that become one call.

    Attributes:
        kind: ``block`` for a copy of a repeated region, ``control`` for control flow with the graphs it calls, ``glue``
            between them, ``memo`` for one of them when its result is kept between calls.
        memo: the mark of its nodes, which says what they depend on; ``None`` for other kinds.
        path: the module it came from, empty where unknown.
        is_region: whether it is a copy of a repeated region, of whatever kind.
    """

    kind: str
    nodes: list[fx.Node]
    memo: str | None = None
    path: str = ""
    is_region: bool = False


def cut(
    groups: Iterable[RegionGroup], boundaries: Set[fx.Node], dependencies: Dependencies, tokens: Tokens
) -> list[Piece]:
    """All pieces of a graph; nodes in none of them stay in the root.

    Args:
        boundaries: values after which a new level begins: what a denoising loop carries from step to step.
    """
    mark_host_work(dependencies.order)
    regions = [
        Piece(_kind("block", nodes[0]), nodes, nodes[0].meta.get(MEMO), path, is_region=True)
        for group in groups
        for instance, path in zip(group.instances, group.paths, strict=True)
        if (nodes := _with_elements(_up_to(boundaries, instance, dependencies)))
    ]
    fixed = [*regions, *(Piece("control", _with_elements([n])) for n in dependencies.order if is_control(n))]
    levels = _levels(fixed, boundaries, dependencies)
    _postpone_views(levels, boundaries, dependencies)
    return [*fixed, *_glue(levels, dependencies, tokens)]


def _up_to(boundaries: Set[fx.Node], nodes: Sequence[fx.Node], dependencies: Dependencies) -> list[fx.Node]:
    """``nodes`` without those after a boundary among them: a region ends where a new level begins."""
    inside, behind = boundaries & set(nodes), set[fx.Node]()
    for node in sorted(nodes, key=dependencies.position.__getitem__) if inside else ():
        if any(source in inside or source in behind for source in node.all_input_nodes):
            behind.add(node)
    return [node for node in nodes if node not in behind]


_Mark: TypeAlias = tuple[str | None, int | None, bool]

_UNMARKED: _Mark = (None, None, False)


def _mark(node: fx.Node) -> _Mark:
    """Nodes of different marks share no glue."""
    return node.meta.get(MEMO), node.meta.get(MEMO_PLACE), node.meta.get(ON_HOST, False)


def _kind(kind: str, node: fx.Node) -> str:
    return "memo" if node.meta.get(MEMO) else kind


def _with_elements(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """``nodes`` with all elements of their own tuples and none of others, so that no tuple crosses a border.

    The same goes for exchanges by copies and the waits for them, so that none is on its way between two pieces. Regions
    are trimmed node by node after they were found: such a node may have been left outside.
    """
    inside = set(nodes)
    kept = [node for node in nodes if not (is_element(node) or waits_for_copies(node)) or node.args[0] in inside]
    more = [user for node in nodes for user in node.users if user not in inside and _goes_with(user, node)]
    return [*kept, *more]


def _goes_with(user: fx.Node, node: fx.Node) -> bool:
    return is_tuple(node) or waits_for_copies(user)


def _levels(regions: Sequence[Piece], boundaries: Set[fx.Node], dependencies: Dependencies) -> dict[fx.Node, int]:
    """The level of every glue node."""
    contraction = Contraction([piece.nodes for piece in regions], dependencies)
    outside: set[fx.Node] = set()
    while True:
        glue = _glue_levels(contraction, len(regions), outside, boundaries, dependencies)
        escaping = {n for n in glue if is_scalar(n) and any(glue.get(user) != glue[n] for user in n.users)}
        if not escaping:
            return glue
        outside |= escaping


def _glue_levels(
    contraction: Contraction,
    regions: int,
    outside: Set[fx.Node],
    boundaries: Set[fx.Node],
    dependencies: Dependencies,
) -> dict[fx.Node, int]:
    """Levels when the sizes ``outside`` stay in the root; other sizes that are read off glue are glue themselves."""
    reached = [0] * len(contraction.steps)
    glue: dict[fx.Node, int] = {}
    for step in contraction.order():
        node = contraction.steps[step][0]
        if step < regions:
            reached[step] = 1 + max((reached[source] for source in contraction.before(step)), default=0)
            continue
        sources = dependencies.before(node)
        inside = is_movable(node) or (is_scalar(node) and node not in outside and any(s in glue for s in sources))
        reached[step] = max(
            (reached[contraction.step_of[s]] + _rises(s, node, s in glue, inside, boundaries) for s in sources),
            default=0,
        )
        if inside:
            glue[node] = reached[step]
    return glue


def _rises(source: fx.Node, node: fx.Node, from_glue: bool, to_glue: bool, boundaries: Set[fx.Node]) -> int:
    """Whether the way from ``source`` to ``node`` enters a new level."""
    changes_piece = from_glue and (not to_glue or _mark(source) != _mark(node))
    return int(source in boundaries or changes_piece)


def _postpone_views(levels: dict[fx.Node, int], boundaries: Set[fx.Node], dependencies: Dependencies) -> None:
    """Move views to the level of the glue that reads them: a view that crosses a border is an alias in two pieces.

    So do picks from what the driver keeps: made earlier, they would be copies that are written and read back.
    """
    for node in reversed(dependencies.order):
        if node not in levels or not _may_wait(node):
            continue
        read = list(node.users) if is_tuple(node) else [node]
        if not boundaries.isdisjoint(read):
            continue
        readers = [user for member in read for user in member.users]
        wanted = {levels.get(reader, -1) for reader in readers}
        if len(wanted) == 1 and all(_mark(reader) == _mark(node) for reader in readers):
            level = wanted.pop()
            if level > levels[node]:
                levels.update(dict.fromkeys([node, *read], level))


def _may_wait(node: fx.Node) -> bool:
    if node.target is torch.ops.aten.index_select.default:
        return isinstance(node.args[0], fx.Node) and node.args[0].op == "call_module"
    return alias_source(node) is not None and node.target is not operator.getitem


def _glue(levels: dict[fx.Node, int], dependencies: Dependencies, tokens: Tokens) -> list[Piece]:
    components = _components(levels, dependencies)
    keys = [form_of(nodes, dependencies, tokens, exact=False).key for nodes in components]
    found_on: dict[int, set[int]] = defaultdict(set)
    for nodes, key in zip(components, keys, strict=True):
        found_on[key].add(levels[nodes[0]])
    pieces: list[Piece] = []
    rest: dict[tuple[int, _Mark], list[fx.Node]] = defaultdict(list)
    for nodes, key in zip(components, keys, strict=True):
        if all(alias_source(node) is not None for node in nodes):
            continue
        if len(found_on[key]) > 1:
            pieces.append(Piece(_kind("glue", nodes[0]), nodes, nodes[0].meta.get(MEMO)))
        else:
            rest[levels[nodes[0]], _mark(nodes[0])] += nodes
    for (_, mark), nodes in rest.items():
        nodes.sort(key=dependencies.position.__getitem__)
        for part in parts(nodes) if mark == _UNMARKED else [nodes]:
            pieces.append(Piece(_kind("glue", nodes[0]), part, nodes[0].meta.get(MEMO)))
    return pieces


def _components(levels: dict[fx.Node, int], dependencies: Dependencies) -> list[list[fx.Node]]:
    """Glue of one level and mark that hangs together, in execution order."""
    seen: set[fx.Node] = set()
    components = []
    for start in dependencies.order:
        if start not in levels or start in seen:
            continue
        key = (levels[start], _mark(start))
        component, pending = [], [start]
        seen.add(start)
        while pending:
            node = pending.pop()
            component.append(node)
            for other in [*dependencies.before(node), *dependencies.after(node)]:
                if other not in seen and other in levels and (levels[other], _mark(other)) == key:
                    seen.add(other)
                    pending.append(other)
        components.append(sorted(component, key=dependencies.position.__getitem__))
    return components
