"""The graphs of one section as data for the page: rows before and after, regions, branches, and links between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch.fx as fx

from lightint_compile.passes.ir.node_queries import graph_of
from lightint_compile.passes.ir.provenance import made_by, origin_of
from lightint_compile.passes.ir.remarks import Remark
from lightint_compile.reporting.graphs import Graphs
from lightint_compile.reporting.page.graph_rows import COLUMNS, Rows, Texts, kind_of
from lightint_compile.reporting.page.links import Fates, made_for, near_misses
from lightint_compile.reporting.rundown import BETWEEN, phases_of

SIDES = ("if reused", "else")
"""What the two sides of a branch on reuse are called."""


def graph_data(graphs: Graphs, remarks: Sequence[Remark]) -> dict[str, Any]:
    """Everything that is drawn, ready for JSON."""
    return _Drawing(graphs).data(remarks)


class _Drawing:
    """The graphs by name: the root is the empty name; regions and branches are named as in the root."""

    def __init__(self, graphs: Graphs) -> None:
        self._texts, self._removed = Texts(), graphs.removed
        self._modules = dict(_named("", graphs.after))
        self._keys = {id(module): name for name, module in self._modules.items()}
        phases = phases_of(graphs.after)
        phases = {node: "" if phase == BETWEEN else phase for node, phase in phases.items()}
        self._after = {
            name: Rows.of(module, self._texts, phases, inputs=not name) for name, module in self._modules.items()
        }
        self._before = Rows.of(graphs.before, self._texts, {})
        self._names = self._before.named()

    def data(self, remarks: Sequence[Remark]) -> dict[str, Any]:
        after = {name: self._graph(name) for name in self._modules}
        fates = Fates(self._before, self._alive(), self._made(), self._removed)
        self._spread_phases(after)
        return {
            "columns": COLUMNS,
            "texts": self._texts.all,
            "before": {
                "rows": self._before.rows,
                "outcomes": fates.outcomes,
                "passes": fates.passes,
                "stands": fates.stands,
            },
            "after": after,
            "misses": near_misses(remarks, self._before),
        }

    def _graph(self, name: str) -> dict[str, Any]:
        module, rows = self._modules[name], self._after[name]
        return {
            "rows": rows.rows,
            "origins": [self._names.get(origin_of(node), -1) for node in rows.nodes],
            "calls": {str(place): self._call(node) for node, place in rows.place.items() if _origins(node)},
            "regions": {
                str(place): self._keys[id(module.get_submodule(str(node.target)))]
                for node, place in rows.place.items()
                if kind_of(module, node) == "region"
            },
            "branches": {
                str(place): self._sides(node) for node, place in rows.place.items() if kind_of(module, node) == "branch"
            },
            "paths": list(dict.fromkeys(module.meta.get("lightint", {}).get("paths", ()))),
        }

    def _call(self, node: fx.Node) -> list[int]:
        """For each row of the called region the captured row it stands for in this call; -1 for one that is new."""
        region = _region_of(node)
        origins, ordinals = _origins(node), _ordinals(region)
        rows = self._after[self._keys[id(region)]]
        return [
            self._names.get(origins[k], -1) if (k := ordinals.get(inner, -1)) in range(len(origins)) else -1
            for inner in rows.nodes
        ]

    def _sides(self, node: fx.Node) -> list[list[str]]:
        graphs = [graph for source in node.all_input_nodes if (graph := graph_of(source)) is not None]
        names = [self._keys[id(graph)] for graph in graphs if id(graph) in self._keys]
        return [[said, name] for said, name in zip(SIDES, names, strict=False)]

    def _calls(self) -> Iterator[tuple[fx.Node, fx.GraphModule]]:
        for rows in self._after.values():
            for node in rows.nodes:
                if _origins(node):
                    yield node, _region_of(node)

    def _alive(self) -> Iterator[str]:
        for rows in self._after.values():
            yield from map(origin_of, rows.nodes)
        for node, _ in self._calls():
            yield from _origins(node)

    def _made(self) -> dict[str, str]:
        """Captured nodes that others were made for: of every call of a region, not only of the one it was cut from."""
        made = made_for(self._modules.values())
        for node, region in self._calls():
            origins = _origins(node)
            for inner, k in _ordinals(region).items():
                if k < len(origins) and "origin" in made_by(inner):
                    made[origins[k]] = str(made_by(inner)["pass"])
        return made

    def _spread_phases(self, after: Mapping[str, Any]) -> None:
        """A captured row runs in the phase of what it became; one that is gone, in that of what read it."""
        column = COLUMNS.index("phase")
        none = self._texts.number("")
        found = [none] * len(self._before.rows)
        for graph in after.values():
            for place, row in enumerate(graph["rows"]):
                for origin in (graph["origins"][place], *graph["calls"].get(str(place), ())):
                    if origin >= 0 and found[origin] == none:
                        found[origin] = row[column]
        self._settle_phases(found, none)
        for row, phase in zip(self._before.rows, found, strict=True):
            row[column] = phase

    def _settle_phases(self, found: list[int], none: int) -> None:
        """Rows without a phase run in that of their first reader; what nothing reads, in that of what it reads."""
        rows, nodes = self._before.rows, self._before.nodes
        first: dict[int, int] = {}
        for place in reversed(range(len(rows))):
            if found[place] == none and place in first and nodes[place].op != "placeholder":
                found[place] = found[first[place]]
            first.update(dict.fromkeys(rows[place][-1], place))
        for place, row in enumerate(rows):
            if found[place] == none:
                found[place] = next((found[source] for source in row[-1] if found[source] != none), none)


def _named(name: str, module: fx.GraphModule) -> Iterator[tuple[str, fx.GraphModule]]:
    """A graph and those that it calls; a region that a branch calls is the root's."""
    seen: set[int] = set()
    pending = [(name, module)]
    while pending:
        name, module = pending.pop(0)
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        prefix = f"{name}/" if name and module.meta.get("lightint", {}).get("kind") != "branch" else ""
        inner = ((key, child) for key, child in module.named_children() if isinstance(child, fx.GraphModule))
        pending += [(prefix + key, child) for key, child in inner]


def _origins(node: fx.Node) -> Sequence[str]:
    """Of a call of a region: the captured nodes of the piece that it replaced."""
    origins: Sequence[str] = made_by(node).get("origins", ())
    return origins


def _region_of(call: fx.Node) -> fx.GraphModule:
    owner = call.graph.owning_module
    region = owner.get_submodule(str(call.target)) if owner is not None else None
    assert isinstance(region, fx.GraphModule)
    return region


def _ordinals(region: fx.GraphModule) -> dict[fx.Node, int]:
    """The operations of a region by number, as the pieces that became it count them; elements of tuples count."""
    calls = (node for node in region.graph.nodes if node.op not in ("placeholder", "output", "get_attr"))
    return {node: number for number, node in enumerate(calls)}
