"""A report's graphs in the JSON format of Google's Model Explorer, which opens the file as it is.

The first graph has both sides: captured operations under ``before/``, the root under ``after/``, coloured by outcome,
with an edge overlay from what was replaced to what replaced it. Regions and branches are graphs of their own; a call
leads to the one that it runs. Field names are those of ``model_explorer.graph_builder``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightint_compile.errors import StateError
from lightint_compile.passes.ir.remarks import Remark
from lightint_compile.reporting.graphs import Graphs
from lightint_compile.reporting.page.graph_data import graph_data
from lightint_compile.reporting.page.links import COMPUTED_ONCE, KEPT, REMOVED, REWRITTEN

if TYPE_CHECKING:
    from lightint_compile.reporting.report import Report

COLOURS = {REWRITTEN: "#c6efce", COMPUTED_ONCE: "#cfe2f8", REMOVED: "#e6dafb"}
"""Background of a node by its outcome; what was kept has the viewer's own."""

LINK = "#1a7f37"
"""Colour of the edges from what was replaced."""

BOTH = "before and after"
"""Name of the graph with both sides."""


def collection(report: Report) -> str:
    """The graphs of all sections as one collection.

    Raises:
        StateError: the report has no graph.
    """
    found = [section for section in report.sections if section.source is not None]
    if not found:
        raise StateError("the report carries no graph", why="it was read from data, or nothing was captured")
    graphs = []
    for number, section in enumerate(found):
        prefix = f"{number + 1} " if len(found) > 1 else ""
        assert section.graphs is not None
        graphs += _Exported(section.graphs, section.remarks, prefix).graphs()
    return json.dumps({"label": f"lightint {found[0].name}", "graphs": graphs})


class _Exported:
    """The graphs of one section, from the data that the page draws."""

    def __init__(self, graphs: Graphs, remarks: Sequence[Remark], prefix: str) -> None:
        self._data, self._prefix = graph_data(graphs, remarks), prefix
        self._column = {name: place for place, name in enumerate(self._data["columns"])}

    def graphs(self) -> list[dict[str, Any]]:
        overlay = {"name": "replaced by", "edgeColor": LINK, "edges": list(self._links())}
        overlays = [{"name": "lightint", "type": "edge_overlays", "overlays": [overlay]}]
        both = [*self._captured(), *self._of_graph("", "after", "a/")]
        return [
            {
                "id": self._name(BOTH),
                "nodes": both,
                "tasksData": {"edgeOverlaysDataListLeftPane": overlays, "edgeOverlaysDataListRightPane": overlays},
            },
            *(
                {"id": self._name(name), "nodes": list(self._of_graph(name, "", ""))}
                for name in self._data["after"]
                if name
            ),
        ]

    def _name(self, graph: str) -> str:
        return self._prefix + graph

    def _captured(self) -> Iterator[dict[str, Any]]:
        before = self._data["before"]
        told = zip(before["rows"], before["outcomes"], before["passes"], strict=True)
        for place, (row, outcome, by) in enumerate(told):
            space = "/".join(filter(None, ("before", self._text(row, "phase"), *self._text(row, "path").split("."))))
            yield self._node(
                row, f"b/{place}", space, "b/", {"outcome": f"{outcome} by {by}" if by else outcome}, outcome
            )

    def _of_graph(self, name: str, space: str, prefix: str) -> Iterator[dict[str, Any]]:
        graph = self._data["after"][name]
        for place, row in enumerate(graph["rows"]):
            by = self._text(row, "pass")
            outcome = REWRITTEN if by and by != "outline-regions" else KEPT
            phase = self._text(row, "phase") if space else ""
            node = self._node(row, f"{prefix}{place}", "/".join(filter(None, (space, phase))), prefix, {}, outcome)
            called = [graph["regions"].get(str(place)), *(side for _, side in graph["branches"].get(str(place), ()))]
            inner = [self._name(each) for each in called if each is not None]
            yield node | ({"subgraphIds": inner} if inner else {})

    def _node(
        self, row: list[Any], identity: str, space: str, prefix: str, more: Mapping[str, str], outcome: str
    ) -> dict[str, Any]:
        told = {name: self._text(row, name) for name in ("target", "source", "path", "pass", "rule")}
        cost = {"FLOPs": f"{row[self._column['flops']]:,}", "bytes moved": f"{row[self._column['bytes']]:,}"}
        attributes = {**told, **cost, **more}
        node = {
            "id": identity,
            "label": row[self._column["name"]],
            "namespace": space,
            "attrs": [{"key": key, "value": value} for key, value in attributes.items() if value not in ("", "0")],
            "incomingEdges": [{"sourceNodeId": f"{prefix}{source}"} for source in row[self._column["inputs"]]],
            "outputsMetadata": [{"id": "0", "attrs": [{"key": "shape", "value": self._text(row, "value")}]}],
        }
        return node | ({"style": {"backgroundColor": COLOURS[outcome]}} if outcome in COLOURS else {})

    def _links(self) -> Iterator[dict[str, str]]:
        """From captured rows that were replaced to nodes of the root, each pair once."""
        before, root = self._data["before"], self._data["after"][""]
        ends: dict[int, int] = {}
        for place, origin in enumerate(root["origins"]):
            for inner in (origin, *root["calls"].get(str(place), ())):
                ends.setdefault(inner, place)
        for place, (outcome, through) in enumerate(zip(before["outcomes"], before["stands"], strict=True)):
            if outcome != KEPT and through in ends:
                yield {"sourceNodeId": f"b/{place}", "targetNodeId": f"a/{ends[through]}"}

    def _text(self, row: list[Any], name: str) -> str:
        return str(self._data["texts"][row[self._column[name]]])
