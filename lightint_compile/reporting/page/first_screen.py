"""The first screen: what was rewritten, what it saves, what was not and the one change that helps most, what ran."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.reporting.page.decided import decided, entry, frames, reused
from lightint_compile.reporting.page.links import SETTLED
from lightint_compile.reporting.page.savings import best_change, bytes_moved, work
from lightint_compile.reporting.page.words import PASSES, classes, numerics
from lightint_compile.reporting.section import PassRow, Section
from lightint_compile.reporting.units import changed, counted

if TYPE_CHECKING:
    from lightint_compile.reporting.report import Report

MOST = 6
"""Lines of a card."""


def first_screen(report: Report) -> str:
    """Four cards."""
    cards = (
        ("rewritten", "What was rewritten", _rewritten(report.sections)),
        ("saved", "What it saves", _saved(report)),
        ("not-rewritten", "What was not, and what would help", _left(report.sections)),
        ("decided", "What the run decided", decided(report.sections, report.chunks, steps(report.sections))),
    )
    return "\n".join(
        f'<article class="card" id="card-{name}"><h2>{title}</h2>{"".join(body)}</article>'
        for name, title, body in cards
    )


def _rewritten(sections: Sequence[Section]) -> Iterator[str]:
    total = sum(section.rewritten for section in sections)
    places = "place" if total == 1 else "places"
    yield f'<p class="figure">{total} <span>{places}</span></p>'
    for section in sections:
        if section.untouched:
            yield f"<p>left as it is: {escape(section.untouched)}</p>"
    rows = _joined(row for section in sections for row in section.passes)
    done = [row for row in rows if row.rewritten]
    lines = [
        f'<li><b>{escape(row.name)}</b> {row.rewritten} <span class="quiet">{escape(_effect(row))}</span></li>'
        for row in done
    ]
    yield f"<ul>{''.join(lines)}</ul>" if lines else "<p>No pass found a place to rewrite.</p>"
    yield f'<p class="quiet">{escape(classes(row.numerics for row in done))}.</p>' if lines else ""


def _joined(rows: Iterable[PassRow]) -> list[PassRow]:
    """Passes of several graphs, each once, their counts added up."""
    found: dict[str, PassRow] = {}
    for row in rows:
        known = found.get(row.name)
        sums = {} if known is None else {name: getattr(known, name) + getattr(row, name) for name in _COUNTS}
        found[row.name] = row if known is None else dataclasses.replace(known, **sums)
    return list(found.values())


_COUNTS = ("rewritten", "missed", "seconds", "flops_before", "flops_after")


def _effect(row: PassRow) -> str:
    """What it means, by how much the work fell, and what happens to the numbers."""
    share = (row.flops_after - row.flops_before) / row.flops_before if row.flops_before else 0.0
    fell = f"{100 * share:.1f} % FLOPs" if share <= -0.0005 else ""
    return " · ".join(filter(None, (PASSES.get(row.name, ""), fell, numerics(row.numerics))))


def _saved(report: Report) -> Iterator[str]:
    before, after = (sum(column) for column in zip((0, 0), *map(work, report.sections), strict=True))
    yield f'<p class="figure">{escape(changed(before, after) if before else "–")} <span>FLOPs</span></p><dl>'
    if before:
        yield entry("FLOPs", f"{counted(before, 'FLOP')} became {counted(after, 'FLOP')}")
    moved = [bytes_moved(graphs) for section in report.sections if (graphs := section.graphs) is not None]
    if moved and all(work(section) == section.flops for section in report.sections):
        first, last = (sum(column) for column in zip(*moved, strict=True))
        yield entry(
            "memory traffic, unfused", f"{counted(first, 'B')} became {counted(last, 'B')} ({changed(first, last)})"
        )
    operations = ", ".join(f"{s.nodes_before} became {s.nodes_after}" for s in report.sections)
    yield entry("operations, a call of a region being one", operations or "none")
    if saved := _in_the_run(report):
        yield entry("in the run, on top", escape(saved))
    yield entry("measured time", escape(_measured(report.chunks)))
    yield from _predicted(report.sections)
    yield "</dl>"
    if any(section.runs for section in report.sections):
        yield '<p class="quiet">FLOPs count both sides of every branch and the largest context: what a run reuses '
        yield "or leaves out comes on top.</p>"


def _measured(chunks: Sequence[Mapping[str, Any]]) -> str:
    times = [sum(chunk["milliseconds"].values()) for chunk in chunks if chunk.get("milliseconds")]
    if not times:
        return "not measured: lightint_compile.report(compiled, run=...) times a run"
    return f"{sum(times) / len(times):.1f} ms a call, mean of {len(times)}; the model as it was is not timed here"


def _in_the_run(report: Report) -> str:
    """What was reused or left out by decisions, of what the model does; empty where nothing was."""
    whole = steps(report.sections) * len(report.chunks)
    (read, fewer), taken = frames(report.chunks), reused(report.chunks)
    said = [f"{taken} of {whole} denoising steps reused"] if taken and whole else []
    said += [f"{fewer} of {read + fewer} context frames left out"] if fewer else []
    return ", ".join(said)


def steps(sections: Sequence[Section]) -> int:
    """Denoising steps of a chunk: the most that a root runs."""
    return max((sum(bool(_STEP.fullmatch(phase)) for phase, _ in section.runs) for section in sections), default=0)


_STEP = re.compile(r"step \d+")


def _predicted(sections: Sequence[Section]) -> Iterator[str]:
    """Milliseconds on a named device, all sections together."""
    names = dict.fromkeys(name for section in sections for name in section.predicted)
    for name in names:
        what, _, when = name.rpartition(" ")
        if when == "before":
            first, last = (sum(s.predicted.get(f"{what} {end}", 0.0) for s in sections) for end in ("before", "after"))
            yield entry(f"predicted, {escape(what)}", f"{first:.4g} became {last:.4g} ({changed(first, last)})")


def _left(sections: Sequence[Section]) -> Iterator[str]:
    misses = [remark for section in sections for remark in section.of_kind(RemarkKind.MISSED)]
    total = sum(remark.count for remark in misses)
    yield f'<p class="figure">{total} <span>near {"miss" if total == 1 else "misses"}</span></p>'
    best = best_change(sections)
    if best is not None:
        verb = "saves" if best.saves else "is about"
        share = f" It {verb} {100 * best.share:.0f} % of the work." if best.share else ""
        yield f'<p class="best"><b>Change this first:</b> {escape(best.hint)}.</p>'
        yield f'<p class="quiet">{escape(best.because)}.{share}</p>'
    elif not misses:
        yield "<p>Nothing that a pass looks for was left out.</p>"
    else:
        yield "<p>Nothing to change: what was left as it is would not pay, or has no cure.</p>"
    yield from _short(misses)
    if misses:
        yield '<p class="quiet">A near miss is a place that a pass began to match. Each is below, with its line.</p>'


def _short(misses: Iterable[Remark]) -> Iterator[str]:
    counts, said = Counter[tuple[str, str]](), dict[tuple[str, str], str]()
    for remark in misses:
        kind = remark.pass_name, remark.rule
        counts[kind] += remark.count
        settled = " (left so on purpose)" if remark.rule in SETTLED else ""
        said.setdefault(kind, remark.message + settled)
    lines = [
        f'<li>{count} × <b>{escape(kind[0])}</b> <span class="quiet">{escape(said[kind])}</span></li>'
        for kind, count in counts.items()
    ]
    more = f"<li>and {len(lines) - MOST} more kinds</li>" if len(lines) > MOST else ""
    if lines:
        yield f"<ul>{''.join(lines[:MOST])}{more}</ul>"
