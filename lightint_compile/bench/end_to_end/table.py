"""How the benchmark end to end prints: a row a variant, and below it a line a stage along time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightint_compile.bench.end_to_end.result import STAGES, TEXT, UNREAD_TEXT, Result, Span, shown_stages

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 130
"""Columns of what is printed."""

LANE = 110
"""Columns of a line along time."""

COLUMNS = ("variant", "seconds", "frames", "frames/s", "vs eager", "first ms", *STAGES, "beside", "GB", "decoded by")

_LEGEND = """Measured at {depth} blocks; text: {text}. seconds: to the last frame in host memory, median of {repeats}.
first ms: until the first chunk's frames are there. {stages}: milliseconds a chunk, p50 / p95 over
all chunks; stages that run at once slow each other down. beside: share of decode and transfer while a chunk was
denoised. GB: by device. Along time: the last digit of the chunk, · where the stage waits."""


def print_result(result: Result) -> None:
    """One line as soon as a variant is measured, so that nothing is lost when a later one is stopped."""
    said = result.error or f"{result.whole:.2f} s, {result.frames} frames, {result.rate:.2f} frames/s"
    print(f"{result.job.title}: {said}", flush=True)


def print_table(results: Sequence[Result]) -> None:
    """The table, what its columns are, and every variant's chunks along time."""
    from rich.console import Console

    console, job = Console(width=WIDTH), results[0].job.rollout
    console.print(table(results))
    stages = ", ".join(STAGES)
    said = _LEGEND.format(depth=job.depth, text=_text(results), repeats=job.repeats, stages=stages)
    console.print(said, highlight=False)
    for result in results:
        for line in _timeline(result):
            console.print(line, highlight=False, markup=False)


def _text(results: Sequence[Result]) -> str:
    """What encoded the prompt, and how long it took in each variant."""
    times = [f"{each.stages[TEXT].p50:.1f}" for each in results if TEXT in each.stages]
    told = next((each.text for each in results if TEXT in each.stages), UNREAD_TEXT)
    return f"{told}, {', '.join(times)} ms" if times else told


def table(results: Sequence[Result]) -> Table:
    """One row a variant."""
    from rich.table import Table

    job = results[0].job.rollout
    made = Table(title=f"{job.model} end to end along {job.trajectory}")
    for column in COLUMNS:
        left = column in ("variant", "decoded by")
        made.add_column(column, justify="left" if left else "right", overflow="fold")
    eager = next((each.whole for each in results if each.job.rollout.variant == "eager" and each.seconds), None)
    for result in results:
        made.add_row(result.job.rollout.variant, *_cells(result, eager))
    return made


def _cells(result: Result, eager: float | None) -> tuple[str, ...]:
    if result.error:
        return (result.error,)
    return (
        f"{result.whole:.2f}",
        str(result.frames),
        f"{result.rate:.1f}",
        f"{eager / result.whole:.2f}x" if eager else "",
        f"{result.first_frame:.0f}",
        *(f"{result.stages[stage].p50:.1f} / {result.stages[stage].p95:.1f}" for stage in STAGES),
        f"{result.beside:.0%}",
        ", ".join(f"{peak:.1f}" for peak in result.peak_gigabytes.values()),
        str(result.job.decoding),
    )


def _timeline(result: Result) -> list[str]:
    if not result.timeline:
        return []
    end = max(span.end for span in result.timeline)
    late = f"; compiled after the warm-up: {result.compiled_late}" if result.compiled_late else ""
    lines = [f"{result.job.title}: 0 to {end:.0f} ms; {result.decoder}{late}"]
    for stage in shown_stages(result.timeline):
        spans = [span for span in result.timeline if span.stage == stage]
        lines.append(f"  {stage:<9}{lane(spans, end)}")
    return lines


def lane(spans: Sequence[Span], end: float, columns: int = LANE) -> str:
    """The chunk that a stage works on at ``columns`` equal parts of the time up to ``end``; at least one for each."""
    said = ["·"] * columns
    for span in spans:
        first, last = (min(int(columns * at / end), columns - 1) for at in (span.begin, span.end))
        for column in range(first, max(last, first + 1)):
            said[column] = str(span.chunk % 10)
    return "".join(said)
