"""Where copies of a region may be: children of a module list, calls of one module, nodes with equal surroundings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace

import torch.fx as fx

from lightint_compile.passes.analysis.regions.growth import Allowed, Slot
from lightint_compile.passes.ir.flops import WorkKind, kind_of
from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.ir.node_data import Tokens
from lightint_compile.passes.ir.node_queries import is_movable
from lightint_compile.passes.ir.remarks import generic_path

#: Rounds of comparing producers before two nodes count as alike: enough to tell attention from MLP residuals.
ROUNDS = 3

#: The part of a module that numbered children with attention must be: it is then a list of blocks, and no block.
BLOCKS = 0.8

#: Without module paths: how many numbers of copies are tried, and anchors for each; the best has the right phase.
COUNTS_TRIED = 8
ANCHORS_TRIED = 6

#: Other phases tried for the repetition that was found.
PHASES_TRIED = 8


@dataclass(frozen=True)
class Candidate:
    """A set of copies to grow: anchors aligned over the copies, and what each copy may take.

    Attributes:
        nodes: an upper bound on the nodes that the copies can cover together.
        copies: how many copies there are.
        is_structural: whether the copies were proposed by their look alone, so that their phase is a guess.
    """

    anchors: tuple[Slot, ...]
    allowed: Allowed
    copies: int
    nodes: int
    is_structural: bool = False

    @property
    def bound(self) -> int:
        """Nodes that need not be compiled if all copies turn out equal."""
        return self.nodes - self.nodes // max(self.copies, 1)


def by_module(nodes: Sequence[fx.Node], tokens: Tokens) -> list[Candidate]:
    """Candidates from module paths, one for each family and kind of last value.

    A module that is called again and again, and is little else than a list of blocks, is none: its blocks are.
    """
    families: dict[tuple[str, str], dict[str, list[fx.Node]]] = defaultdict(lambda: defaultdict(list))
    for node in nodes:
        for family, instance in _memberships(node):
            families[family][instance].append(node)
    instances = (family for family in families.values() if not any(is_list(*each) for each in family.items()))
    return [found for family in instances for found in _of_family(list(family.values()), tokens)]


def is_list(module: str, nodes: Sequence[fx.Node]) -> bool:
    """Whether most of ``nodes``, of a module, are in several numbered children of it that attend: its blocks."""
    child_of = {node: child for node in nodes if (child := _numbered_child(node, module.split("@")[0]))}
    attending = {child for node, child in child_of.items() if kind_of(node) is WorkKind.ATTENTION}
    if len(attending) < 2:
        return False
    sizes = Counter(child_of.values())
    return sum(sizes[child] for child in attending) >= BLOCKS * len(nodes)


def _numbered_child(node: fx.Node, module: str) -> str:
    """The outermost module with a number for a name that ``node`` is in below ``module``; empty where it is in none."""
    paths = [str(path).split("@")[0] for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    below = paths[paths.index(module) + 1 :] if module in paths else ()
    return next((path for path in below if path.rpartition(".")[2].isdigit()), "")


def _memberships(node: fx.Node) -> Iterator[tuple[tuple[str, str], str]]:
    """The families that a node belongs to, each with the instance: indexed children of a list, and repeated calls."""
    for path, kind in (node.meta.get("nn_module_stack") or {}).values():
        generic = generic_path(str(path).split("@")[0])
        yield (generic, getattr(kind, "__name__", str(kind))), str(path)


def _of_family(instances: Sequence[list[fx.Node]], tokens: Tokens) -> Iterator[Candidate]:
    kinds: dict[int, list[tuple[fx.Node, set[fx.Node]]]] = defaultdict(list)
    for nodes in instances if len(instances) > 1 else ():
        inside = set(nodes)
        last = _last(nodes, inside)
        if last is not None:
            kinds[_look(last, inside, tokens)].append((last, inside))
    for members in kinds.values():
        if len(members) > 1:
            lasts, sets = [last for last, _ in members], [inside for _, inside in members]
            anchors = (tuple(lasts), *_further_sinks(sets, lasts, tokens))
            yield Candidate(anchors, _within(sets), len(members), sum(map(len, sets)))


def _look(node: fx.Node, inside: Set[fx.Node], tokens: Tokens, rounds: int = ROUNDS) -> int:
    """A number that says what a node and its producers within an instance look like, ``rounds`` deep."""
    if not rounds:
        return tokens.of(node)
    producers = (_look(s, inside, tokens, rounds - 1) if s in inside else None for s in node.all_input_nodes)
    return tokens.number((tokens.of(node), tuple(producers)))


def _last(nodes: Sequence[fx.Node], inside: Set[fx.Node]) -> fx.Node | None:
    """The value that most of an instance leads to: the sink with the largest cone."""
    sinks = list(_sinks(nodes, inside))
    if len(sinks) < 2:
        return sinks[0] if sinks else None
    return max(sinks, key=lambda sink: _cone_size(sink, inside))


def _sinks(nodes: Iterable[fx.Node], inside: Set[fx.Node]) -> Iterator[fx.Node]:
    return (node for node in nodes if node.users and not any(user in inside for user in node.users))


def _cone_size(sink: fx.Node, inside: Set[fx.Node]) -> int:
    return len(reached([sink], lambda node: (source for source in node.all_input_nodes if source in inside)))


def _further_sinks(sets: Sequence[Set[fx.Node]], lasts: Sequence[fx.Node], tokens: Tokens) -> Iterator[Slot]:
    """Other sinks that every instance has exactly once."""
    tables: list[dict[int, list[fx.Node]]] = []
    for inside, last in zip(sets, lasts, strict=True):
        tables.append(defaultdict(list))
        for node in _sinks(inside, inside):
            if node is not last:
                tables[-1][_look(node, inside, tokens)].append(node)
    for key in tables[0]:
        if all(len(table.get(key, ())) == 1 for table in tables):
            yield tuple(table[key][0] for table in tables)


def _within(sets: Sequence[Set[fx.Node]]) -> Allowed:
    return lambda copy, node: node in sets[copy]


def _colours(nodes: Iterable[fx.Node], tokens: Tokens) -> dict[fx.Node, int]:
    """A number for each node that says what it and its producers look like, :data:`ROUNDS` deep."""
    order = list(nodes)
    colour = {node: tokens.of(node) for node in order}
    for _ in range(ROUNDS):
        colour = {
            node: tokens.number((tokens.of(node), *(colour.get(source) for source in node.all_input_nodes)))
            for node in order
        }
    return colour


def by_structure(nodes: Sequence[fx.Node], tokens: Tokens) -> list[Candidate]:
    """Candidates without module paths: nodes of one colour anchor a copy each, which may take any of ``nodes``."""
    inside, colour = set(nodes), _colours(nodes, tokens)
    classes: dict[int, list[fx.Node]] = defaultdict(list)
    for node in nodes:
        classes[colour[node]].append(node)
    by_count: dict[int, list[list[fx.Node]]] = defaultdict(list)
    for members in classes.values():
        if len(members) > 1:
            by_count[len(members)].append(members)
    chosen: list[list[fx.Node]] = []
    for count in sorted(by_count, reverse=True)[:COUNTS_TRIED]:
        # A value that is read twice is where a residual stream passes from one copy to the next.
        chosen += sorted(by_count[count], key=lambda members: len(members[0].users) < 2)[:ANCHORS_TRIED]

    def allowed(copy: int, node: fx.Node) -> bool:
        return node in inside

    return [Candidate((tuple(members),), allowed, len(members), len(nodes), True) for members in chosen]


def rephased(groups: Iterable[Sequence[Sequence[fx.Node]]], found: Candidate) -> Iterator[Candidate]:
    """``found`` anchored at other places of the copies it led to: between blocks rather than in the middle of one."""
    for instances in groups:
        places = [place for place in zip(*instances, strict=True) if len(place[0].users) > 1]
        for place in places[:PHASES_TRIED]:
            yield replace(found, anchors=(place,), copies=len(place))


def movable(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """The nodes that can move into a region."""
    return [node for node in nodes if is_movable(node)]
