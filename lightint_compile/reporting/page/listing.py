"""The parts of the page that are text: the passes as a table, remarks, graph breaks, and what runs."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import torch

from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.reporting.breaks import GRAPH_BREAK
from lightint_compile.reporting.page.graph_rows import is_weight
from lightint_compile.reporting.page.words import REGIONS, RISE, VARIES, classes, numerics
from lightint_compile.reporting.section import Section
from lightint_compile.reporting.text import TITLES, change, sentence, sizes
from lightint_compile.reporting.units import counted


def listing(section: Section, number: int, of: int) -> str:
    """Everything that is said of one graph."""
    place = f" (graph {number + 1} of {of})" if of > 1 else ""
    return "\n".join(
        [
            f'<section class="graph-text"><h2>{escape(section.name)}{place}: {escape(sentence(section))}</h2>',
            *_body(section, number),
            "</section>",
        ]
    )


def _body(section: Section, number: int) -> Iterator[str]:
    breaks = [(n, r) for n, r in enumerate(section.remarks) if r.pass_name == GRAPH_BREAK]
    if section.untouched:
        yield f"<p>left as it is: {escape(section.untouched)}</p>"
    else:
        yield f"<p>{escape(sizes(section))}</p>"
        yield from _takes(section)
        yield from _table(section)
        yield from _runs(section)
    yield _group("graph breaks", breaks, number, is_open=True)
    for kind, heading in TITLES.items():
        chosen = [(n, r) for n, r in enumerate(section.remarks) if r.kind is kind and r.pass_name != GRAPH_BREAK]
        yield _group(heading, chosen, number, is_open=kind in (RemarkKind.MISSED, RemarkKind.FAILURE))
    yield from _facts(section)


def _table(section: Section) -> Iterator[str]:
    heads = ("pass", "found", "rewritten", "near miss", "ms", "FLOPs", "numerics")
    if not section.passes:
        return
    yield '<div class="wide" role="region" aria-label="passes" tabindex="0"><table><thead><tr>'
    yield "".join(f'<th scope="col">{head}</th>' for head in heads) + "</tr></thead><tbody>"
    for row in section.passes:
        cells = (row.found, row.rewritten, row.missed, f"{1000 * row.seconds:.0f}", change(row), numerics(row.numerics))
        data = "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
        yield f'<tr><th scope="row">{escape(row.name)}</th>{data}</tr>'
    yield "</tbody></table></div>"
    told = [RISE] if any(row.flops_after > row.flops_before > 0 for row in section.passes) else []
    told += [f"{classes(row.numerics for row in section.passes)}."]
    yield from (f'<p class="quiet">{escape(line)}</p>' for line in told)


def _takes(section: Section) -> Iterator[str]:
    """The tensors that the graph takes: what tells one graph of a model from another."""
    graph = section.original
    nodes = [] if graph is None else [n for n in graph.graph.find_nodes(op="placeholder") if not is_weight(n)]
    values = {str(node.target): node.meta.get("val") for node in nodes}
    shapes = {name: value.shape for name, value in values.items() if isinstance(value, torch.Tensor)}
    if not shapes:
        return
    said = ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in shapes.items())
    varies = any(not isinstance(size, int) for shape in shapes.values() for size in shape)
    yield f'<p class="quiet">It takes {escape(said)}.{f" {VARIES}" if varies else ""}</p>'


def _runs(section: Section) -> Iterator[str]:
    if not section.runs:
        return
    lines = "".join(f"<dt>{escape(phase)}</dt><dd>{escape(said)}</dd>" for phase, said in section.runs)
    yield _folded(
        "what runs, from top to bottom", f'<p class="quiet">{REGIONS}</p><dl class="runs">{lines}</dl>', False
    )


def _group(title: str, remarks: list[tuple[int, Remark]], section: int, *, is_open: bool) -> str:
    if not remarks:
        return ""
    inside = "\n".join(_remark(remark, f"remark-{section}-{number}") for number, remark in remarks)
    return _folded(f"{title} ({len(remarks)})", inside, is_open)


def _remark(remark: Remark, identity: str) -> str:
    count = f"{remark.count} × " if remark.count > 1 else ""
    place = " ".join(filter(None, (remark.module_path, remark.source)))
    saved = ""
    if remark.flops_before is not None and remark.flops_after not in (None, remark.flops_before):
        saved = f" ({counted(remark.flops_before, 'FLOP')} became {counted(remark.flops_after or 0, 'FLOP')})"
    hint = f'<p class="hint">→ {escape(remark.hint)}</p>' if remark.hint else ""
    return (
        f'<div class="remark {remark.kind}" id="{identity}"><p>{count}<b>{escape(remark.pass_name)}</b> '
        f'{escape(remark.rule)} <span class="quiet">{escape(place)}</span></p>'
        f"<p>{escape(remark.message + saved)}</p>{hint}</div>"
    )


def _facts(section: Section) -> Iterator[str]:
    options = ", ".join(f"{name}={value}" for name, value in section.options.items()) or "defaults"
    measured = ", ".join(f"{name} {value:.4g}" for name, value in section.measurements.items())
    yield "<dl class='facts'>"
    yield f"<dt>options</dt><dd><code>{escape(options)}</code></dd>"
    yield f"<dt>pipeline</dt><dd><code>{escape(section.pipeline.replace(',', ', ') or 'no pass')}</code></dd>"
    yield f"<dt>measured</dt><dd>{escape(measured)}</dd>" if measured else ""
    yield "</dl>"


def _folded(summary: str, inside: str, is_open: bool) -> str:
    return f"<details{' open' if is_open else ''}><summary>{escape(summary)}</summary>{inside}</details>"
