"""The rows as a table, for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .variants import EAGER

Row = Mapping[str, Any]


def _number(value: float | None, places: int = 2) -> str:
    return "–" if value is None else f"{value:.{places}f}"


def _ranged(name: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        around = row[f"{name}_interval"]
        said = _number(row[name])
        return said if around is None else f"{said} [{around[0]:.2f}, {around[1]:.2f}]"

    return cell


COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "PSNR truth": _ranged("psnr_truth"),
    "revisits": lambda row: _number(row["psnr_truth_revisit"]),
    "SSIM truth": lambda row: _number(row["ssim_truth"], 3),
    "loss": lambda row: _number(row["psnr_truth_loss"]),
    "PSNR eager": lambda row: _number(row["psnr_eager"]),
    "worst decile": lambda row: _number(row["psnr_truth_worst_decile"]),
    "steps": lambda row: _number(row["steps_per_chunk"], 2),
    "ms/chunk": lambda row: _number(row["milliseconds_per_chunk"], 1),
    "p95": lambda row: _number(row["milliseconds_p95"], 1),
    "speed": lambda row: "–" if row["speed"] is None else f"{row['speed']:.2f}x",
    "GB": lambda row: _number(row["peak_gigabytes"]),
}
"""What is shown of a row; the JSON file has more."""

LEGEND = """PSNR in dB, with its 95 % bootstrap interval over mazes; loss: PSNR to truth below that of eager.
revisits: frames that show what was seen before the last chunk. worst decile: the worst tenth of chunks, to truth."""


def with_speed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `speed`, against eager in the same family."""
    eager = {row["family"]: row["milliseconds_per_chunk"] for row in rows if row["variant"] == EAGER}

    def speed(row: Row) -> float | None:
        before, now = eager.get(row["family"]), row["milliseconds_per_chunk"]
        return before / now if before and now else None

    return [{**row, "speed": speed(row)} for row in rows]


def print_table(found: Mapping[str, Any], console: Console | None = None) -> None:
    """A row a variant and family, family by family."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    made.add_column("family")
    made.add_column("variant", overflow="fold")
    for name in COLUMNS:
        made.add_column(name, justify="right", overflow="fold")
    families = _by_family(found["rows"])
    for family, rows in families.items():
        for row in rows:
            cells = [cell(row) for cell in COLUMNS.values()]
            made.add_row(family, row["variant"], *cells, end_section=row is rows[-1])
    console = console or Console(width=150)
    console.print(made)
    console.print(LEGEND, highlight=False, markup=False)


SETTING_COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "calibrated": lambda row: _number(row["calibrated_worst"], 4),
    "others": lambda row: _number(row["calibrated_spread"], 4),
    "error": lambda row: _number(row["error"], 4),
    "worst": lambda row: _number(row["error_worst"], 4),
    "loss": lambda row: _number(row["psnr_truth_loss"]),
    "revisits": lambda row: _number(row["psnr_truth_revisit_loss"]),
    "steps": lambda row: _number(row["steps_per_chunk"]),
    "ms/chunk": lambda row: _number(row["milliseconds_per_chunk"], 1),
    "speed": lambda row: "–" if row["speed"] is None else f"{row['speed']:.2f}x",
}
"""What is shown of a setting."""

BUDGET_COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "chunks": lambda row: str(row["chunks"]),
    "over": lambda row: str(row["over"]),
    "share": lambda row: f"{row['share_over']:.1%}",
    "walks": lambda row: str(row["walks"]),
    "with one over": lambda row: str(row["walks_over"]),
    "worst": lambda row: _number(row["error_worst"], 4),
}
"""What is shown of a budget."""

BUDGETS_LEGEND = """error: relative L2 of a chunk's latents to the exact setting's, on walks that no calibration saw.
Eager's is what its kernels round otherwise.
calibrated: the worst on walks that one saw; others: what 95 % of all walks stay within, by the spread of these.
loss, revisits: PSNR to truth below that of eager, in dB.
over: chunks whose error is above the budget; with one over: walks that have such a chunk.
by walks calibrated on: the smallest budget that such a calibration allows; the share of chunks on other walks that is
over it; of such calibrations, the share behind which that is more than 1 %."""


def print_budgets(found: Mapping[str, Any], console: Console | None = None) -> None:
    """A row a setting of the ladder, a row a budget, and a row a setting by the size of a calibration."""
    console = console or Console(width=150)
    named: dict[str, Callable[[Row], str]] = {"setting": lambda row: row["setting"]}
    sizes = found["calibration_sizes"]
    asked: dict[str, Callable[[Row], str]] = {"budget": lambda row: f"{row['budget']:g}", **named}
    for rows, texts, numbers in (
        (found["ladder"], named, SETTING_COLUMNS),
        (found["budgets"], asked, BUDGET_COLUMNS),
        (sizes, {"by walks calibrated on": named["setting"]}, _size_columns(sizes)),
    ):
        if not rows:
            continue
        made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for name in texts:
            made.add_column(name, overflow="fold")
        for name in numbers:
            made.add_column(name, justify="right", overflow="fold")
        for row in rows:
            made.add_row(*(cell(row) for cell in (*texts.values(), *numbers.values())))
        console.print(made)
    console.print(BUDGETS_LEGEND, highlight=False, markup=False)


def _size_columns(rows: Sequence[Row]) -> dict[str, Callable[[Row], str]]:
    def kept(row: Row, walks: str) -> str:
        found = row["sizes"][walks]
        return f"{found['budget']:.3f} {found['over']:.1%} {found['missed']:.0%}"

    return {walks: partial(kept, walks=walks) for row in rows[:1] for walks in row["sizes"]}


def markdown(found: Mapping[str, Any]) -> str:
    """The same as Markdown, with what was run above it."""
    settings = ", ".join(f"{name} {value}" for name, value in {**found["settings"], **found["about"]}.items())
    head = ["family", "variant", *COLUMNS]
    lines = [f"{settings}.", "", f"| {' | '.join(head)} |", f"|{'|'.join(['---'] * 2 + ['---:'] * len(COLUMNS))}|"]
    for family, rows in _by_family(found["rows"]).items():
        for row in rows:
            cells = [family, f"`{row['variant']}`", *(cell(row) for cell in COLUMNS.values())]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", LEGEND.replace("\n", " "), ""])


def _by_family(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    families: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        families.setdefault(row["family"], []).append(row)
    return families
