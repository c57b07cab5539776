"""What the passes saved, and the one change to the model that would help most."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch.fx as fx

from lightint_compile.passes.ir.flops import bytes_of, flops_of
from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.reporting.breaks import GRAPH_BREAK
from lightint_compile.reporting.called_graphs import called_graphs
from lightint_compile.reporting.graphs import Graphs
from lightint_compile.reporting.page.graph_rows import Rows, Texts
from lightint_compile.reporting.page.links import SETTLED, places_at
from lightint_compile.reporting.section import Section


@dataclass(frozen=True)
class Change:
    """A change to the user's code or options, and what it is worth.

    Attributes:
        hint: what to do.
        because: what stands in the way, and where.
        share: of the graph's FLOPs that it is about, in [0, 1]; 0 where that is not known.
        saves: whether the share is what would be saved; else it is what could be looked at.
    """

    hint: str
    because: str
    share: float = 0.0
    saves: bool = False


def work(section: Section) -> tuple[int, int]:
    """FLOPs before and after, at the same sizes.

    A pass adds no work: where a count rose, the rewritten graph is counted at the largest context that may be chosen,
    the captured one at the context of the call. The rise then belongs to the captured graph as well.
    """
    before, after = section.flops
    return before + sum(max(row.flops_after - row.flops_before, 0) for row in section.passes), after


def bytes_moved(graphs: Graphs) -> tuple[int, int]:
    """Bytes that all operations read and write when each runs by itself, before and after; branches count fully."""
    return _bytes(graphs.before), _bytes(graphs.after)


def _bytes(module: fx.GraphModule) -> int:
    total = 0
    inner: dict[int, int] = {}
    for node in module.graph.nodes:
        total += bytes_of(node)
        for called in called_graphs(module, node):
            if id(called) not in inner:
                inner[id(called)] = _bytes(called)
            total += inner[id(called)]
    return total


def best_change(sections: Iterable[Section]) -> Change | None:
    """The change that would help most: what cuts the model apart first, then what most of the work hangs on."""
    found = list(sections)
    cut = next((r for section in found for r in section.remarks if r.pass_name == GRAPH_BREAK and r.hint), None)
    if cut is not None:
        where = f" at {cut.source}" if cut.source else ""
        return Change(cut.hint, f"the graph is cut{where}, and no pass sees across it")
    worth = [change for section in found for change in _changes(section)]
    return max(worth, key=lambda change: (change.share, change.saves), default=None)


def _changes(section: Section) -> Iterator[Change]:
    weigh = _Weights(section)
    for remark in section.remarks:
        if remark.kind is RemarkKind.FAILURE:
            yield Change("report the failure with this page", f"{remark.pass_name} failed: {remark.message}", 1.0)
        elif remark.hint and remark.kind is RemarkKind.MISSED and remark.rule not in SETTLED:
            yield Change(remark.hint, _told(remark), weigh.share(remark))
        elif remark.hint and remark.flops_before and remark.flops_after is not None and _is_offer(remark):
            saved = (remark.flops_before - remark.flops_after) / remark.flops_before
            yield Change(remark.hint, _told(remark), saved, saves=True)


def _is_offer(remark: Remark) -> bool:
    return remark.kind is RemarkKind.ANALYSIS


def _told(remark: Remark) -> str:
    place = remark.module_path or remark.source
    return f"{remark.pass_name}{f' at {place}' if place else ''}: {remark.message}"


class _Weights:
    """How much of a section's work stands at the line that a remark is about."""

    def __init__(self, section: Section) -> None:
        graphs = section.graphs
        self._rows = Rows.of(graphs.before, Texts(), _NONE) if graphs else None
        self._work = [flops_of(node) for node in self._rows.nodes] if self._rows else []

    def share(self, remark: Remark) -> float:
        """In [0, 1]."""
        total = sum(self._work)
        if self._rows is None or not total:
            return 0.0
        nodes = set(remark.args.get("nodes", ()))
        named = [place for name, place in self._rows.named().items() if name in nodes]
        places = {*named, *places_at(remark, self._rows)}
        return min(1.0, sum(self._work[place] for place in places) / total)


_NONE: Mapping[fx.Node, str] = {}
