"""What became of each captured operation, and which operations stand for it now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch.fx as fx

from lightint_compile.passes.ir.provenance import made_by
from lightint_compile.passes.ir.remarks import Remark, RemarkKind, generic_path, module_path_of, source_of
from lightint_compile.reporting.page.graph_rows import Rows, target_of

SETTLED = frozenset({"too-short", "coarse-tiles", "nothing-to-skip"})
"""Rules of near misses that are choices of ours, for speed or quality: changing the model would not help."""

KEPT, REWRITTEN, COMPUTED_ONCE, REMOVED = "kept", "rewritten", "computed once", "removed"
"""Outcomes: as it was; replaced by something else; an equal one serves; nothing reads it."""


class Fates:
    """The outcome of every row of the captured graph.

    Attributes:
        outcomes: by place.
        passes: the pass behind each outcome, empty for what was kept.
        stands: for a row that is gone the place of the row through which it lives on, else its own; -1 for none.
    """

    def __init__(self, before: Rows, alive: Iterable[str], made: Mapping[str, str], removed: Mapping[str, str]) -> None:
        names, alive = before.named(), set(alive)
        count = len(before.rows)
        self.outcomes, self.passes, self.stands = [KEPT] * count, [""] * count, list(range(count))
        for name, by in made.items():
            if name in names:
                self._settle(names[name], REWRITTEN, by, names[name])
        gone = [place for name, place in names.items() if name not in alive and name not in made]
        self._absorb(before, gone, [names[name] for name in made if name in names], removed)

    def _settle(self, place: int, outcome: str, by: str, stands: int) -> None:
        self.outcomes[place], self.passes[place], self.stands[place] = outcome, by, stands

    def _absorb(self, before: Rows, gone: Sequence[int], replaced: Sequence[int], removed: Mapping[str, str]) -> None:
        """Rows that are gone: inside of what was replaced, equal to one that stays, or read by nothing."""
        waiting = set(gone)
        for place in sorted(replaced, reverse=True):
            pending = list(before.rows[place][-1])
            while pending:
                inner = pending.pop()
                if inner in waiting:
                    waiting.discard(inner)
                    by = removed.get(before.nodes[inner].name, self.passes[place])
                    self._settle(inner, REWRITTEN, by, place)
                    pending.extend(before.rows[inner][-1])
        twins, served = self._twins(before, set(gone)), _served(before, set(gone))
        for place in sorted(waiting):
            twin = twins.get(_likeness(before.nodes[place]), -1)
            outcome = REMOVED if place not in served else COMPUTED_ONCE if twin >= 0 else REWRITTEN
            by = removed.get(before.nodes[place].name, "")
            self._settle(place, outcome, by, twin if outcome == COMPUTED_ONCE else -1)

    @staticmethod
    def _twins(before: Rows, gone: set[int]) -> dict[tuple[str, ...], int]:
        """The first row that stays, by what it does and where it was written."""
        found: dict[tuple[str, ...], int] = {}
        for place, node in enumerate(before.nodes):
            if place not in gone:
                found.setdefault(_likeness(node), place)
        return found


def _served(before: Rows, gone: set[int]) -> set[int]:
    """Rows of ``gone`` whose result something that is left still needs, and gets from elsewhere."""
    served: set[int] = set()
    for place in reversed(range(len(before.rows))):
        if place not in gone or place in served:
            served.update(set(before.rows[place][-1]) & gone)
    return served


def _likeness(node: fx.Node) -> tuple[str, ...]:
    return (target_of(node), source_of(node), module_path_of(node))


def made_for(graphs: Iterable[fx.GraphModule]) -> dict[str, str]:
    """The captured nodes that other nodes were made for, each with the pass."""
    marks = (made_by(node) for graph in graphs for node in graph.graph.nodes)
    return {str(mark["origin"]): str(mark["pass"]) for mark in marks if "origin" in mark}


def near_misses(remarks: Sequence[Remark], before: Rows) -> list[dict[str, Any]]:
    """For each near miss the rows that the match covered, and the one where it stopped (-1 where it is not known)."""
    names = before.named()
    return [_near_miss(number, remark, before, names) for number, remark in enumerate(remarks) if _is_miss(remark)]


def _is_miss(remark: Remark) -> bool:
    return remark.kind is RemarkKind.MISSED


def _near_miss(number: int, remark: Remark, before: Rows, names: Mapping[str, int]) -> dict[str, Any]:
    stopped = names.get(str(remark.args.get("node", "")), -1)
    matched = [names[name] for name in remark.args.get("nodes", ()) if name in names]
    if stopped < 0 and not matched:
        matched = places_at(remark, before)
    return {"remark": number, "stopped": stopped, "matched": matched, "settled": remark.rule in SETTLED}


def places_at(remark: Remark, before: Rows) -> list[int]:
    """Rows of the line and the modules that a remark is about."""
    if not remark.source:
        return []
    return [place for place, node in enumerate(before.nodes) if _is_at(node, remark)]


def _is_at(node: fx.Node, remark: Remark) -> bool:
    if source_of(node) != remark.source:
        return False
    return _agree(generic_path(module_path_of(node)), remark.module_path)


def _agree(path: str, spelled: str) -> bool:
    """Whether a path fits one in which indices are ranges or lists: ``blocks.*.attn`` and ``blocks.0-29.attn``."""
    own, told = path.split("."), spelled.split(".")
    return len(own) == len(told) and all(a == b or a == "*" for a, b in zip(own, told, strict=True))
