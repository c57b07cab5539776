"""The table at the end of a film: time, and how near to the truth and to one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from torch import Tensor

from lightint_compile.demo.side import Side

LEGEND = """first calls: the walk once, compilation included; chunk: the median one of the walk after that
truth, revisits, each other: PSNR in dB of the frames that were not given, to the rendered truth, of those of them that
show what was seen before the last chunk, and of the two films to one another"""


def row_of(side: Side, truth: Tensor, again: Tensor, alike: Tensor) -> dict[str, Any]:
    """Plain data of one side: PSNR [F] to the truth, which frames are revisits, PSNR [F] of the two sides."""
    return {
        "variant": side.name,
        "milliseconds a chunk": side.typical,
        "seconds": sum(side.milliseconds) / 1e3,
        "first calls seconds": side.cold_seconds,
        "psnr truth": float(truth.mean()),
        "psnr truth revisits": float(truth[again].mean()) if bool(again.any()) else None,
        "psnr to each other": float(alike.mean()),
        "chunk milliseconds": list(side.milliseconds),
    }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows for a terminal, the original's first."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    made.add_column("run by", no_wrap=True)
    for name in ("first calls", "chunk", "speed", "truth", "revisits", "each other"):
        made.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        made.add_row(*_cells(row, rows[0]))
    return made


def _cells(row: dict[str, Any], original: dict[str, Any]) -> tuple[str, ...]:
    again = row["psnr truth revisits"]
    return (
        row["variant"],
        f"{row['first calls seconds']:.1f} s",
        f"{row['milliseconds a chunk']:.0f} ms",
        f"{original['milliseconds a chunk'] / row['milliseconds a chunk']:.2f}x",
        f"{row['psnr truth']:.2f} dB",
        "–" if again is None else f"{again:.2f} dB",
        f"{row['psnr to each other']:.2f} dB",
    )
