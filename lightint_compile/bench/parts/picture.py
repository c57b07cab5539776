"""Pictures of a part: speed of kernels over density, and milliseconds of the chunks of a rollout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.ticker import ScalarFormatter

from lightint_compile.bench.parts.listed import Kind
from lightint_compile.bench.parts.sections import Figures, results_of

SUFFIX = ".png"

PICTURES: Mapping[Kind, str] = {
    Kind.KERNELS: "Speed over dense attention by density, a line each length",
    Kind.ROLLOUT: "Milliseconds of each chunk, a line each variant",
    Kind.EVALUATION: "Quality against time, and drift over chunks",
}
"""What a kind's picture shows; that of an evaluation is drawn by its own command."""


def draw(kind: Kind, figures: Figures, path: Path) -> None:
    """Write the picture of a part, where there is anything to draw; other kinds are left alone."""
    drawn = _DRAWN.get(kind)
    if drawn is not None:
        made = drawn(figures)
        if made is not None:
            made.savefig(path, dpi=110, format="png")


def _figure(columns: int) -> tuple[matplotlib.figure.Figure, Sequence[Any]]:
    figure = matplotlib.figure.Figure(figsize=(7 * columns, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Sequence[Any] = figure.subplots(1, columns, squeeze=False)[0]
    return figure, axes


_TITLES = {"sweep": "called from Python", "graphs": "replayed from CUDA graphs"}


def _over_density(figures: Figures) -> matplotlib.figure.Figure | None:
    tables = [name for name in _TITLES if figures.get(name)]
    if not tables:
        return None
    figure, axes = _figure(len(tables))
    for axis, name in zip(axes, tables, strict=True):
        for number, tokens in enumerate(dict.fromkeys(row["tokens"] for row in figures[name])):
            rows = [row for row in figures[name] if row["tokens"] == tokens]
            densities = [row["density"] for row in rows]
            for way, style, label in (("forced", "-o", f"{tokens} tokens"), ("chosen", "--", None)):
                speeds = [row["dense"] / row[way] for row in rows]
                axis.plot(densities, speeds, style, color=f"C{number % 10}", label=label, markersize=4)
        axis.axhline(1.0, color="black", linewidth=0.8)
        title = f"{_TITLES[name]}; dashed: as the cost model runs it"
        axis.set(title=title, xlabel="density", ylabel="speed over dense")
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    return figure


def _by_chunk(figures: Figures) -> matplotlib.figure.Figure | None:
    deepest = {result.job.variant: result for result in results_of(figures) if result.chunks}
    if not deepest:
        return None
    figure, (axis,) = _figure(1)
    for variant, result in deepest.items():
        axis.plot(range(len(result.chunks)), result.chunks, "-o", label=f"{variant}, {result.job.depth} blocks")
    model = next(iter(deepest.values())).job.model
    axis.set(title=f"{model}, random weights", xlabel="chunk", ylabel="milliseconds", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


_DRAWN: Mapping[Kind, Callable[[Figures], matplotlib.figure.Figure | None]] = {
    Kind.KERNELS: _over_density,
    Kind.ROLLOUT: _by_chunk,
}
