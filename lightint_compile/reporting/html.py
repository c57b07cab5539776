"""A report as one HTML file without scripts or network: what the text says, and foldable graphs, before and after."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

import torch
import torch.fx as fx

from lightint_compile.passes.ir.remarks import Remark, RemarkKind, module_path_of
from lightint_compile.reporting.section import Section
from lightint_compile.reporting.text import TITLES, change, sentence, sizes

if TYPE_CHECKING:
    from lightint_compile.reporting.report import Report

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #1b1f24 }
table { border-collapse: collapse } td, th { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #d0d7de }
td:first-child, th:first-child, td:last-child, th:last-child { text-align: left }
code, pre { font: 13px/1.45 ui-monospace, monospace } pre { overflow-x: auto; margin: .3rem 0; white-space: pre }
.remark { border-left: 4px solid #8c959f; padding: .1rem .8rem; margin: .6rem 0 } .applied { border-color: #1a7f37 }
.missed { border-color: #bf8700 } .failure { border-color: #cf222e } .hint { font-weight: 600 }
.where { color: #59636e }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem } .sides > div { min-width: 0 }
@media (prefers-color-scheme: dark) { body { background: #0d1117; color: #e6edf3 } td, th { border-color: #3d444d } }
"""


def render(report: Report) -> str:
    """The whole page."""
    title = escape(f"lightint · {', '.join(dict.fromkeys(section.name for section in report.sections)) or 'no graph'}")
    body = "\n".join(line for section in report.sections for line in _section(section))
    versions = escape(", ".join(f"{name} {version}" for name, version in report.versions))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n{body}\n"
        f"<footer><p>{versions}</p><pre>{escape(report.reproduce)}</pre></footer></body></html>\n"
    )


def _section(section: Section) -> Iterator[str]:
    yield f"<h2>{escape(section.name)}: {escape(sentence(section))}</h2>"
    if section.untouched:
        yield f"<p>left as it is: {escape(section.untouched)}</p>"
        return
    yield f"<p>{escape(sizes(section))}</p>"
    yield from _table(section)
    for kind, heading in TITLES.items():
        remarks = section.of_kind(kind)
        if remarks:
            yield _folded(
                f"{heading} ({len(remarks)})", "\n".join(map(_remark, remarks)), kind is not RemarkKind.ANALYSIS
            )
    if section.graph is not None and section.original is not None:
        sides = f"<div><h4>before</h4>{_graph(section.original)}</div><div><h4>after</h4>{_graph(section.graph)}</div>"
        yield _folded("graphs", f'<div class="sides">{sides}</div>', False)
    measured = ", ".join(f"{name} {value:.4g}" for name, value in section.measurements.items())
    options = ", ".join(f"{name}={value}" for name, value in section.options.items()) or "defaults"
    yield f"<p>pipeline: <code>{escape(section.pipeline)}</code><br>options: <code>{escape(options)}</code>"
    yield f"<br>measured: {escape(measured)}</p>" if measured else "</p>"


def _table(section: Section) -> Iterator[str]:
    heads = ("pass", "found", "rewritten", "near miss", "ms", "FLOPs", "numerics")
    yield f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>"
    for row in section.passes:
        cells = (row.name, row.found, row.rewritten, row.missed, f"{1000 * row.seconds:.0f}", change(row), row.numerics)
        yield f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in cells)}</tr>"
    yield "</table>"


def _remark(remark: Remark) -> str:
    count = f"{remark.count} × " if remark.count > 1 else ""
    place = " ".join(filter(None, (remark.module_path, remark.source)))
    hint = f'<div class="hint">→ {escape(remark.hint)}</div>' if remark.hint else ""
    return (
        f'<div class="remark {remark.kind}">{count}<b>{escape(remark.pass_name)}</b> {escape(remark.rule)} '
        f'<span class="where">{escape(place)}</span><br>{escape(remark.message)}{hint}</div>'
    )


def _graph(graph_module: fx.GraphModule) -> str:
    """Runs of nodes of one top-level module fold together; a region that the graph calls follows it, folded too."""
    calls = [node for node in graph_module.graph.nodes if node.op not in ("placeholder", "output", "get_attr")]
    parts = [_run(place, list(nodes)) for place, nodes in groupby(calls, key=_block)]
    for name, region in graph_module.named_children():
        if isinstance(region, fx.GraphModule):
            parts.append(_folded(f"region {name}", _graph(region), False))
    return "\n".join(parts)


def _run(place: str, nodes: list[fx.Node]) -> str:
    lines = "\n".join(map(_line, nodes))
    return _folded(f"{place or 'root'} ({len(nodes)})", f"<pre>{escape(lines)}</pre>", False)


def _block(node: fx.Node) -> str:
    """The module path up to the first number, which is included: ``blocks.3`` of ``blocks.3.attn1.to_q``."""
    parts = module_path_of(node).split(".")
    end = next((index + 1 for index, part in enumerate(parts) if part.isdigit()), 1)
    return ".".join(parts[:end])


def _line(node: fx.Node) -> str:
    inputs = ", ".join(producer.name for producer in node.all_input_nodes)
    value = node.meta.get("val")
    shape = (
        f" : {str(value.dtype).removeprefix('torch.')}{list(value.shape)}" if isinstance(value, torch.Tensor) else ""
    )
    return f"{node.name}{shape} = {node.target}({inputs})"


def _folded(summary: str, inside: str, is_open: bool) -> str:
    return f"<details{' open' if is_open else ''}><summary>{escape(summary)}</summary>{inside}</details>"
