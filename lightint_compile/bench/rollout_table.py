"""How the benchmark of a rollout prints: a row a variant, then what each job spent its time on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightint_compile.bench.rollout import Result


def print_table(results: Sequence[Result], full_depth: int) -> None:
    """One row a variant: seconds measured at each depth, and on the line through them at the full depth."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Seconds of {results[0].job.model} along {results[0].job.trajectory}")
    for column in ("variant", "measured (depth: seconds)", f"line at depth {full_depth}", "vs eager", "warm-up s"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    lines = {variant: line(rows, full_depth) for variant, rows in _by_variant(results).items()}
    for variant, rows in _by_variant(results).items():
        measured = ", ".join(f"{r.job.depth}: {r.error or f'{r.seconds:.2f}'}" for r in rows)
        at_full, eager = lines[variant], lines.get("eager")
        ratio = f"{eager / at_full:.2f}x" if eager and at_full else ""
        warm = f"{max(r.warm_seconds for r in rows):.0f}"
        table.add_row(variant, measured, "" if at_full is None else f"{at_full:.1f}", ratio, warm)
    console = Console(width=110)
    console.print(table)
    for result in results:
        kernels = ", ".join(f"{kind} {ms:.1f}" for kind, ms in sorted(result.kernels.items()))
        chunks = " ".join(f"{ms:.0f}" for ms in result.chunks)
        console.print(f"{result.job.variant} depth {result.job.depth}: chunks ms {chunks}", highlight=False)
        if kernels:
            stages = ", ".join(f"{stage} {ms:.1f}" for stage, ms in sorted(result.stages.items()))
            console.print(f"  kernels of the last chunk, ms: {kernels}", highlight=False)
            console.print(f"  stages of the last chunk but one, ms: {stages}", highlight=False)
            console.print(
                f"  peak memory {result.peak_gigabytes:.1f} GB, compiled after warm-up: {result.compiled_late}",
                highlight=False,
            )
        if result.driver or result.idle is not None:
            console.print(f"  driver: {_driver_line(result)}", highlight=False)
        if result.context:
            console.print(f"  context frames {list(result.context)}, reused {list(result.reused)}", highlight=False)


def _driver_line(result: Result) -> str:
    """What the driver takes of the host, and what the device waits for it."""
    spent = ", ".join(f"{kind} {ms:.2f}" for kind, ms in result.driver.items())
    parts = [f"host ms a chunk: {spent}"] if spent else []
    parts += [] if result.deciding is None else [f"decide and guard are {100 * result.deciding:.2f} % of a chunk"]
    parts += [] if result.idle is None else [f"device idle for {100 * result.idle:.1f} % of the last chunk"]
    return "; ".join(parts)


def line(rows: Sequence[Result], depth: int) -> float | None:
    """Seconds at ``depth``: measured, or on the straight line through two measured depths; ``None`` without two."""
    good = sorted((row for row in rows if row.chunks), key=lambda row: row.job.depth)
    if good and good[-1].job.depth == depth:
        return good[-1].seconds
    if len(good) < 2:
        return None
    low, high = good[0], good[-1]
    slope = (high.seconds - low.seconds) / (high.job.depth - low.job.depth)
    return low.seconds + slope * (depth - low.job.depth)


def _by_variant(results: Sequence[Result]) -> dict[str, list[Result]]:
    rows: dict[str, list[Result]] = {}
    for result in results:
        rows.setdefault(result.job.variant, []).append(result)
    return rows
