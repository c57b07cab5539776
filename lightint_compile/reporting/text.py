"""A report as text of at most 80 columns: one sentence, the passes as a table, then every remark with its reason."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.reporting.breaks import ACCELERATE, GRAPH_BREAK
from lightint_compile.reporting.section import PassRow, Section
from lightint_compile.reporting.units import changed, counted

if TYPE_CHECKING:
    from lightint_compile.reporting.report import Report

WIDTH = 80

#: Headings of the groups of remarks, in the order they are shown.
TITLES = {
    RemarkKind.APPLIED: "rewritten",
    RemarkKind.MISSED: "near misses",
    RemarkKind.FAILURE: "failed",
    RemarkKind.ANALYSIS: "found out",
}


def render(report: Report) -> str:
    """The whole report as text."""
    lines: list[str] = []
    for index, section in enumerate(report.sections):
        number = f" (graph {index + 1} of {len(report.sections)})" if len(report.sections) > 1 else ""
        lines += [*_section(section, number), ""]
    if not report.sections:
        lines += ["lightint · nothing was captured: the call ran no tensor operation", ""]
    lines += _entry("versions", ", ".join(f"{name} {version}" for name, version in report.versions))
    lines += _entry("reproduce", report.reproduce)
    return "\n".join(lines)


def _section(section: Section, number: str) -> Iterator[str]:
    yield from _wrap(f"lightint · {section.name}{number} · {sentence(section)}", "", "  ")
    breaks = [remark for remark in section.remarks if remark.pass_name == GRAPH_BREAK]
    if section.untouched:
        yield from _wrap(f"left as it is: {section.untouched}", "  ", "  ")
        yield from _group("graph breaks", breaks)
        yield from _group(TITLES[RemarkKind.ANALYSIS], [r for r in section.remarks if r.pass_name == ACCELERATE])
        return
    yield from _wrap(sizes(section), "  ", "  ")
    if section.passes:
        yield ""
        yield from _table(section.passes)
    yield from _runs(section)
    yield from _group("graph breaks", breaks)
    for kind in TITLES:
        yield from _group(TITLES[kind], [remark for remark in section.of_kind(kind) if remark not in breaks])
    yield from _nothing(section)
    yield ""
    yield from _measurements(section)
    yield from _predictions(section)
    given = ", ".join(f"{name}={value}" for name, value in section.options.items()) or "defaults"
    yield from _entry("options", given)
    yield from _entry("pipeline", section.pipeline.replace(",", ", ") or "no pass")


def sentence(section: Section) -> str:
    """What happened to a graph, in one sentence."""
    if section.untouched:
        return "not rewritten"
    seconds = sum(row.seconds for row in section.passes)
    rewrites = _plural(section.rewritten, "rewrite", "rewrites")
    misses = _plural(section.missed, "near miss", "near misses")
    return f"{rewrites}, {misses} · {1000 * seconds:.0f} ms of passes"


def sizes(section: Section) -> str:
    """Operations and FLOPs before and after."""
    text = f"{section.nodes_before} operations became {section.nodes_after}"
    before, after = section.flops
    if not before:
        return text
    return f"{text}; {_flops(before)} became {_flops(after)} ({100 * (after - before) / before:+.1f} %)"


def _runs(section: Section) -> Iterator[str]:
    """What a chunk runs: a line a phase, and the regions that they call."""
    if section.runs:
        yield ""
        yield "  what runs"
    for phase, said in section.runs:
        yield from _wrap(f"{phase:<12} {said}", "    ", " " * 17)


def _table(rows: Iterable[PassRow]) -> Iterator[str]:
    yield f"  {'pass':<23}{'found':>6}{'rewritten':>10}{'near miss':>10}{'ms':>8}{'FLOPs':>9}  numerics"
    for row in rows:
        counts = f"{row.found:>6}{row.rewritten:>10}{row.missed:>10}{1000 * row.seconds:>8.0f}{change(row):>9}"
        yield f"  {row.name:<23}{counts}  {_NUMERICS.get(row.numerics, row.numerics)}"


#: Spelled short enough for the last column.
_NUMERICS = {"reassociates": "reorders", "approximate": "approx."}


def change(row: PassRow) -> str:
    """By how much a pass changed the graph's FLOPs."""
    return changed(row.flops_before, row.flops_after)


def _group(title: str, remarks: list[Remark]) -> Iterator[str]:
    if not remarks:
        return
    yield ""
    yield f"  {title}"
    for remark in remarks:
        yield from _remark(remark)


def _remark(remark: Remark) -> Iterator[str]:
    count = f"{remark.count} x " if remark.count > 1 else ""
    rule = f" [{remark.rule}]" if remark.rule else ""
    place = f" {remark.module_path}" if remark.module_path else ""
    yield from _wrap(f"{count}{remark.pass_name}{rule}{place}", "    ", "        ")
    if remark.source:
        yield f"        at {_short(remark.source, WIDTH - 11)}"
    yield from _wrap(remark.message + _saving(remark), "        ", "        ")
    if remark.hint:
        yield from _wrap(f"→ {remark.hint}", "        ", "          ")


def _saving(remark: Remark) -> str:
    if remark.flops_before is None or remark.flops_after is None or remark.flops_before == remark.flops_after:
        return ""
    return f" ({_flops(remark.flops_before)} became {_flops(remark.flops_after)})"


def _nothing(section: Section) -> Iterator[str]:
    """Say why when no pass did anything; a near miss or a failure has said so already."""
    if section.rewritten or not section.passes or section.missed or section.of_kind(RemarkKind.FAILURE):
        return
    yield ""
    names = ", ".join(row.name for row in section.passes)
    reason = (
        f"nothing applies: the graph has no place that looks like what {names} rewrite. It runs as captured, "
        f"through the delegate alone."
    )
    yield from _wrap(reason, "  ", "  ")


def _measurements(section: Section) -> Iterator[str]:
    parts = [
        f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in section.measurements.items()
    ]
    yield from _entry("measured", ", ".join(parts)) if parts else ()


def _predictions(section: Section) -> Iterator[str]:
    """``H100 attention ms 12.1 became 4.3``, pairs of before and after."""
    told = section.predicted
    kinds = [name.removesuffix(" before") for name in told if name.endswith(" before")]
    pairs = [f"{kind} {told[f'{kind} before']:.4g} became {told[f'{kind} after']:.4g}" for kind in kinds]
    yield from _entry("predicted", "; ".join(pairs)) if pairs else ()


def _entry(label: str, text: str) -> list[str]:
    return _wrap(f"{label:<10} {text}", "  ", " " * 13)


def _wrap(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False, break_long_words=True
    )


def _short(source: str, room: int) -> str:
    """The end of ``file:line``, leading folders dropped until it fits."""
    parts = source.split("/")
    while len(parts) > 1 and len("…/" + "/".join(parts)) > room:
        parts = parts[1:]
    shortened = "/".join(parts)
    return shortened if shortened == source else f"…/{shortened}"[:room]


def _flops(count: float) -> str:
    return counted(count, "FLOP")


def _plural(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
