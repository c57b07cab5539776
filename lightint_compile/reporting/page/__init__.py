"""The page: a report as one HTML file that needs no network.

What a person reads first is HTML; the graph and the timeline are drawn from data in the file, by cytoscape.js and
dagre, which stand in the file too.
"""

from __future__ import annotations

import json
import re
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

from lightint_compile.reporting.page.first_screen import first_screen, steps
from lightint_compile.reporting.page.graph_data import graph_data
from lightint_compile.reporting.page.listing import listing
from lightint_compile.reporting.section import Section

if TYPE_CHECKING:
    from lightint_compile.reporting.report import Report

LIBRARIES = ("cytoscape.min.js", "cytoscape-dagre.min.js")
"""Drawing and layout, with their licences beside them."""

SCRIPTS = ("items.js", "shown.js", "drawing.js", "outline.js", "details.js", "search.js", "timeline.js", "main.js")
"""The page's own scripts, in the order in which they are read."""


def render(report: Report) -> str:
    """The whole page."""
    title = f"lightint · {', '.join(dict.fromkeys(section.name for section in report.sections)) or 'no graph'}"
    sections = report.sections
    return Template(_asset("static", "page.html")).substitute(
        title=escape(title),
        style=_asset("static", "page.css"),
        summary=first_screen(report),
        listings="\n".join(listing(section, number, len(sections)) for number, section in enumerate(sections)),
        versions=escape(", ".join(f"{name} {version}" for name, version in report.versions)),
        reproduce=escape(report.reproduce),
        data=_inlined(_data(report)),
        libraries="\n".join(f"<script>{_asset('vendor', name)}</script>" for name in LIBRARIES),
        scripts="<script>" + "\n".join(_asset("static", name) for name in SCRIPTS) + "</script>",
    )


def _data(report: Report) -> dict[str, Any]:
    return {
        "sections": [_section(section) for section in report.sections],
        "chunks": list(report.chunks),
        "path": {**report.path, "steps": steps(report.sections)},
    }


def _section(section: Section) -> dict[str, Any]:
    graphs = section.graphs
    return {
        "name": section.name,
        "remarks": [remark.to_dict() for remark in section.remarks],
        "graph": graph_data(graphs, section.remarks) if graphs is not None else None,
    }


def _inlined(data: Any) -> str:
    """JSON that may stand in a script element."""
    return json.dumps(data, separators=(",", ":"), default=str).replace("<", "\\u003c")


def _asset(folder: str, name: str) -> str:
    text = (files(__package__) / folder / name).read_text(encoding="utf-8")
    return re.sub(r"//# sourceMappingURL=.*", "", text) if name.endswith(".js") else text
