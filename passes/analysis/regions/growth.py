"""Growing copies of a region in lockstep: backwards from one node in each copy, for as long as all copies agree.

The idea is that of Dynamo's ``graph_region_tracker``, on ATen nodes: it needs no source positions, does not care about
the order of nodes, and stops by itself where copies meet (one copy's first input is the previous copy's last value) and
at whatever they share (a value hoisted out of the loop, the conditioning of a step).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence, Set

import torch.fx as fx

from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.ir.node_data import Tokens
from lightint_compile.passes.ir.node_queries import is_element, is_lookup, is_scalar, is_tuple

#: One node of every copy, the same place in each.
Slot = tuple[fx.Node, ...]

#: Whether a node may become part of a given copy.
Allowed = Callable[[int, fx.Node], bool]


def grow(anchors: Sequence[Slot], allowed: Allowed, tokens: Tokens) -> list[list[Slot]]:
    """Largest regions around ``anchors`` on which their copies agree; copies that disagree form separate groups.

    Args:
        anchors: slots to start from, each with one node a copy; tokens agree within a slot.
        allowed: what a copy may take in.

    Returns:
        For each group of at least two agreeing copies, its slots.
    """
    pending = [(list(anchors), list(range(len(anchors[0]))))]
    groups: list[list[Slot]] = []
    while pending:
        start, copies = pending.pop()
        if len(copies) < 2:
            continue
        outcome = _Growth(start, copies, allowed, tokens).run()
        if outcome.parts:
            pending += [
                ([tuple(slot[i] for i in part) for slot in start], [copies[i] for i in part]) for part in outcome.parts
            ]
        else:
            groups.append(outcome.slots)
    return groups


class _Growth:
    """One attempt. It ends with slots, or with ``parts``: a partition of the copies that disagreed."""

    def __init__(self, anchors: Sequence[Slot], copies: Sequence[int], allowed: Allowed, tokens: Tokens) -> None:
        self.slots: list[Slot] = []
        self.parts: list[list[int]] = []
        self._copies, self._allowed, self._tokens = copies, allowed, tokens
        self._owner: dict[fx.Node, tuple[int, int]] = {}
        self._refused: set[Slot] = set()
        self._later: set[fx.Node] | None = None
        self._anchors = len(anchors)
        for anchor in anchors:
            self._take(anchor)

    def run(self) -> _Growth:
        done = 0
        while done < len(self.slots) and not self.parts:
            slot = self.slots[done]
            done += 1
            for place in zip(*map(self._tokens.arguments, slot), strict=True):
                self._consider(place)
                if self.parts:
                    break
        return self

    def _consider(self, place: Slot) -> None:
        if place in self._refused:
            return
        if any(node in self._owner for node in place):
            self._check_owned(place)
        elif self._takeable(place) and self._agree(place):
            self._take(place)
        else:
            self._refused.add(place)

    def _check_owned(self, place: Slot) -> None:
        """Some nodes are taken: fine when each is at the same place of its own copy, else the copies differ."""
        owners = [self._owner.get(node) for node in place]
        if any(owner is not None and owner[0] != copy for copy, owner in enumerate(owners)):
            self._refused.add(place)
        elif len(set(slots := [None if owner is None else owner[1] for owner in owners])) > 1:
            self._split(slots)

    def _takeable(self, place: Slot) -> bool:
        """Whether no node is shared between copies, and every copy may take its own."""
        return len(set(place)) == len(place) and all(map(self._allowed, self._copies, place))

    def _agree(self, place: Slot) -> bool:
        kinds = [self._tokens.of(node) for node in place]
        if len(set(kinds)) > 1 and not all(map(self._is_outer, place)):
            self._split(kinds)
        return len(set(kinds)) == 1

    def _is_outer(self, node: fx.Node) -> bool:
        """Whether a node looks something up that no copy computes (``sigmas[i]``): it is left outside, in front."""
        if not is_lookup(node):
            return False
        if self._later is None:
            anchors = [node for slot in self.slots[: self._anchors] for node in slot]
            self._later = reached((user for node in anchors for user in node.users), lambda node: node.users)
        return node not in self._later

    def _split(self, kinds: Sequence[int | None]) -> None:
        parts: dict[int | None, list[int]] = defaultdict(list)
        for copy, kind in enumerate(kinds):
            parts[kind].append(copy)
        self.parts = list(parts.values())

    def _take(self, place: Slot) -> None:
        for copy, node in enumerate(place):
            self._owner[node] = (copy, len(self.slots))
        self.slots.append(place)


def recruit(slots: Sequence[Slot], others: Iterable[fx.Node], free: Collection[fx.Node], tokens: Tokens) -> list[Slot]:
    """``slots`` with the further copies that end in one of ``others``.

    Grown from alike surroundings, a group lacks the copies at the ends of a chain: what is in front of the first block
    is not a block. Each node of ``others`` that ends a region equal to the first copy joins, if its nodes are ``free``.
    """
    copies = [list(copy) for copy in zip(*slots, strict=True)]
    taken = {node for copy in copies for node in copy}
    for anchor in others:
        matched = _match(copies[0], anchor, tokens)
        if matched and all(node in free and node not in taken for node in matched):
            copies.append(matched)
            taken.update(matched)
    return list(zip(*copies, strict=True))


def _match(template: Sequence[fx.Node], anchor: fx.Node, tokens: Tokens) -> list[fx.Node]:
    """The nodes that correspond to ``template`` when its first node is ``anchor``; empty when they do not."""
    inside = set(template)
    image = {template[0]: anchor}
    for node in template:
        found = image.get(node)
        if found is None or tokens.of(found) != tokens.of(node):
            return []
        for source, other in zip(tokens.arguments(node), tokens.arguments(found), strict=True):
            if source in inside and image.setdefault(source, other) is not other:
                return []
    matched = [image[node] for node in template]
    return matched if len(set(matched)) == len(matched) else []


def absorb(slots: Sequence[Slot], free: Set[fx.Node], tokens: Tokens) -> list[Slot]:
    """``slots`` with what every copy's results are turned into next by itself: repeated keys, a tiled or pooled value.

    A ``free`` node joins when it reads nothing but its copy, inputs of the program and sizes, and all copies have one.
    """
    grown, taken = list(slots), {node for slot in slots for node in slot}
    places = [{node: index for index, node in enumerate(copy)} for copy in zip(*slots, strict=True)]
    index = 0
    while index < len(grown):
        pairs = zip(grown[index], places, strict=True)
        tables = [_readers(node, place, free, taken, tokens) for node, place in pairs]
        for key in tables[0]:
            found = tuple(table[key][0] for table in tables if len(table.get(key, ())) == 1)
            if len(found) == len(tables) == len(set(found)):
                for node, place in zip(found, places, strict=True):
                    place[node] = len(grown)
                grown.append(found)
        index += 1
    return grown


def _readers(
    node: fx.Node, place: dict[fx.Node, int], free: Set[fx.Node], taken: Set[fx.Node], tokens: Tokens
) -> dict[tuple[int, tuple[int, ...]], list[fx.Node]]:
    """The free nodes, not taken by any copy, that read ``node`` and nothing else that is computed outside the copy, by
    look and wiring."""
    found = defaultdict(list)
    for user in node.users:
        if user in place or user in taken or user not in free:
            continue
        arguments = tokens.arguments(user)
        if all(a in place or a.op in ("placeholder", "get_attr") or is_scalar(a) for a in arguments):
            found[tokens.of(user), tuple(place.get(a, -1) for a in arguments)].append(user)
    return found


def whole_tuples(slots: Sequence[Slot], live: Container[fx.Node]) -> list[Slot]:
    """``slots`` such that a tuple and its elements are on the same side of the border.

    An element whose tuple is outside is dropped; the other ``live`` elements of a tuple that is inside are added.
    """
    inside = {slot[0] for slot in slots}
    kept = [slot for slot in slots if not is_element(slot[0]) or slot[0].args[0] in inside]
    return kept + [
        slot for owner in kept if is_tuple(owner[0]) for slot in _elements(owner, live) if slot[0] not in inside
    ]


def _elements(owner: Slot, live: Container[fx.Node]) -> Iterator[Slot]:
    """The elements that every copy reads from a tuple; elements that only some copies read leave the copies unequal."""
    by_index = [{user.args[1]: user for user in node.users if user in live} for node in owner]
    for index in by_index[0]:
        if all(index in users for users in by_index):
            yield tuple(users[index] for users in by_index)
