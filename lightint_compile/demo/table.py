"""The table at the end of a demo, for a terminal and as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from lightint_compile.demo.measure import Run


def summary(runs: Sequence[Run], rewrites: int, baseline: str = "eager") -> list[dict[str, Any]]:
    """One row a run, path by path: seconds, and the difference to the ``baseline`` run along the same path."""
    reference = {run.path: run for run in runs if run.variant == baseline}
    order = list(reference)
    return [
        {
            "path": run.path,
            "variant": run.variant,
            "trace seconds": run.trace_seconds,
            "compile seconds": run.compile_seconds,
            "seconds a chunk": run.steady_seconds,
            "speed": reference[run.path].steady_seconds / run.steady_seconds,
            "difference": run.difference(reference[run.path]),
            "rewrites": rewrites if run.variant == "lightint" else 0,
            "chunk seconds": list(run.chunk_seconds),
        }
        for run in sorted(runs, key=lambda run: order.index(run.path))
    ]


LEGEND = """trace, compile: seconds in Dynamo and in the backend, from a cold start
chunk: median seconds of a chunk after those that compile; speed: against eager
differs: relative L2 of the latents to eager's, each rollout fed with its own frames"""


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows for a terminal."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    made.add_column("camera path", no_wrap=True)
    made.add_column("run by", no_wrap=True)
    for name in ("trace", "compile", "chunk", "speed", "differs", "rewrites"):
        made.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        made.add_row(*_cells(row), end_section=row["variant"] == "lightint")
    return made


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["path"],
        row["variant"],
        f"{row['trace seconds']:.1f}",
        f"{row['compile seconds']:.1f}",
        f"{row['seconds a chunk']:.2f}",
        f"{row['speed']:.2f}x",
        f"{row['difference']:.1e}",
        str(row["rewrites"] or "–"),
    )
