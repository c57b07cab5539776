"""The picture of a rollout along time: a row a stage, a colour a chunk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.axes
import matplotlib.figure
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lightint_compile.bench.end_to_end.result import Result, shown_stages


def draw(path: Path, results: Sequence[Result]) -> None:
    """Write the picture, one below the other for every variant that has figures; all have the same scale of time."""
    shown = [result for result in results if result.timeline]
    if not shown:
        return
    figure = matplotlib.figure.Figure(figsize=(14, 1 + 1.6 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shown), 1, squeeze=False, sharex=True)[:, 0]
    for axis, result in zip(axes, shown, strict=True):
        _draw_run(axis, result)
    axes[-1].set_xlabel("milliseconds from the start")
    figure.savefig(path, dpi=120, format="png")


def _draw_run(axis: matplotlib.axes.Axes, result: Result) -> None:
    colours, stages = colormaps["tab10"], shown_stages(result.timeline)
    for span in result.timeline:
        row = stages.index(span.stage)
        place = [(span.begin, span.milliseconds)]
        axis.broken_barh(place, (row - 0.4, 0.8), facecolor=colours(span.chunk % 10))
    axis.set_yticks(range(len(stages)), stages)
    axis.invert_yaxis()
    job = result.job
    axis.set_title(f"{job.title}, decoding {job.decoding}: {result.whole:.2f} s, {result.rate:.1f} frames/s", size=10)
