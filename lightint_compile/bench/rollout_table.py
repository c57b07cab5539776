"""How the benchmark of a rollout prints: a row a variant, then what each job spent its time on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightint_compile.bench.rollout_job import Result
from lightint_compile.models.registry import world_model

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 130
"""Columns of what is printed."""

VIDEO_FRAMES = 4
"""Video frames of a latent frame, by the VAE of every model here; the first latent frame has one."""


def print_result(result: Result) -> None:
    """One line as soon as a job is measured, so that nothing is lost when a later one is stopped."""
    job = result.job
    said = result.error or f"{result.seconds:.2f} s, {video_rate(result, result.seconds):.2f} video frames/s"
    print(f"{job.variant} depth {job.depth}: {said}; chunks ms {_milliseconds(result)}", flush=True)


def video_rate(result: Result, seconds: float) -> float:
    """Video frames a second, of a rollout that takes ``seconds``; what a VAE takes is not in it."""
    latents = world_model(result.job.model).spec.frames(len(result.chunks))
    return (VIDEO_FRAMES * (latents - 1) + 1) / seconds


def print_table(results: Sequence[Result], full_depth: int) -> None:
    """The table, and below it what each job spent its time on."""
    from rich.console import Console

    console = Console(width=WIDTH)
    console.print(table(results, full_depth))
    console.print(LEGEND, highlight=False)
    for result in results:
        for each in details(result):
            console.print(each, highlight=False)


LEGEND = """Seconds of the DiT core: no VAE, no text encoder. video/s: video frames a second at the full depth.
stages: milliseconds of the last chunk but one at the largest measured depth; rest: what is done once a chunk."""


def table(results: Sequence[Result], full_depth: int) -> Table:
    """One row a variant: the DiT core at each depth and on the line through them at the full depth, and its stages."""
    from rich.table import Table

    made = Table(title=f"Seconds of {results[0].job.model} along {results[0].job.trajectory}")
    columns = (
        "variant",
        "depth: seconds",
        f"depth {full_depth}",
        "vs eager",
        "video/s",
        "stages, ms",
        "warm-up s",
        "GB",
    )
    for column in columns:
        made.add_column(column, justify="left" if column in ("variant", "stages, ms") else "right", overflow="fold")
    by_variant = _by_variant(results)
    eager = line(by_variant.get("eager", []), full_depth)
    for variant, rows in by_variant.items():
        made.add_row(variant, *_cells(rows, full_depth, eager))
    return made


def _cells(rows: Sequence[Result], full_depth: int, eager: float | None) -> tuple[str, ...]:
    at_full, deepest = line(rows, full_depth), rows[-1]
    return (
        ", ".join(f"{row.job.depth}: {row.error or f'{row.seconds:.2f}'}" for row in rows),
        "" if at_full is None else f"{at_full:.1f}",
        f"{eager / at_full:.2f}x" if eager and at_full else "",
        f"{video_rate(deepest, at_full):.1f}" if at_full else "",
        _stages(deepest),
        f"{max(row.warm_seconds for row in rows):.0f}",
        f"{deepest.peak_gigabytes:.1f}" if deepest.peak_gigabytes else "",
    )


def details(result: Result) -> list[str]:
    """Lines about one job."""
    lines = [f"{result.job.variant} depth {result.job.depth}: chunks ms {_milliseconds(result)}"]
    if result.stages:
        lines.append(f"  stages of the last chunk but one, ms: {_stages(result)}")
    if result.kernels:
        kernels = ", ".join(f"{kind} {ms:.1f}" for kind, ms in sorted(result.kernels.items()))
        lines.append(f"  kernels of the last chunk, ms: {kernels}")
    if result.compiled_late or result.peak_gigabytes:
        lines.append(f"  peak memory {result.peak_gigabytes:.1f} GB, compiled after warm-up: {result.compiled_late}")
    if result.driver or result.idle is not None:
        lines.append(f"  driver: {_driver_line(result)}")
    if result.context:
        lines.append(f"  context frames {list(result.context)}, reused {list(result.reused)}")
    return lines


def _milliseconds(result: Result) -> str:
    return " ".join(f"{each:.0f}" for each in result.chunks)


def _stages(result: Result) -> str:
    return ", ".join(f"{stage} {ms:.1f}" for stage, ms in sorted(result.stages.items()))


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
