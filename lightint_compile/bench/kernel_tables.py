"""How ``bench kernels`` shows its figures: the tables of what its JSON holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table


def site_table(site: Mapping[str, Any]) -> Table:
    """One row a way to compute a site, against the fastest dense way."""
    table = Table(title=f"{site['site']}: {site['queries']} queries, {site['keys']} keys", expand=True)
    for column in ("way", "ms", "TFLOP/s", "x best dense"):
        table.add_column(column, justify="left" if column == "way" else "right")
    dense = min(time for name, time in site["ms"].items() if name.startswith("dense"))
    for name, time in site["ms"].items():
        flops = site["flops"].get(name)
        table.add_row(name, f"{time:.3f}", f"{flops / time / 1e9:.3g}" if flops else "", f"{dense / time:.2f}")
    return table


def sweep_table(rows: Sequence[Mapping[str, float]], *, in_graphs: bool) -> Table:
    """One row a length, a column a density."""
    how = "replayed from CUDA graphs" if in_graphs else "called from Python"
    table = Table(title=f"speed over dense, {how}, by density: forced, and as the cost model runs it", expand=True)
    for column in ("tokens", "dense ms", *(f"{density:g}" for density in dict.fromkeys(r["density"] for r in rows))):
        table.add_column(column, justify="right")
    for length in dict.fromkeys(row["tokens"] for row in rows):
        measured = [row for row in rows if row["tokens"] == length]
        cells = [f"{row['dense'] / row['forced']:.2f} / {row['dense'] / row['chosen']:.2f}" for row in measured]
        table.add_row(str(length), f"{measured[0]['dense']:.3f}", *cells)
    return table


def host_table(figures: Mapping[str, float]) -> Table:
    """One row a call."""
    table = Table(title="host time of one call", expand=True)
    table.add_column("call")
    table.add_column("us", justify="right")
    for name, time in figures.items():
        table.add_row(name, f"{time:.1f}")
    return table
