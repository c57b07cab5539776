"""The picture of a demo: seconds of every chunk, and the frames that each chunk looked back at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.figure
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.ticker import MaxNLocator

from lightint_compile.demo.measure import Run
from lightint_compile.models.world_model import CameraPath, WorldModel

_NEW, _CONTEXT = 2, 1


def context_map(model: WorldModel, path: CameraPath) -> torch.Tensor:
    """[chunks, frames]: 2 where a frame is made, 1 where it is looked back at, 0 elsewhere."""
    spec, frames = model.spec, len(path)
    used = torch.zeros(spec.chunks(frames), frames, dtype=torch.int64)
    for index in range(used.shape[0]):
        first = spec.frames(index)
        used[index, first : spec.frames(index + 1)] = _NEW
        if first:
            used[index, list(model.context_frames(path, first))] = _CONTEXT
    return used


def draw(path: Path, runs: Sequence[Run], contexts: Mapping[str, torch.Tensor]) -> None:
    """Write the picture: a column a camera path, times above and context frames below."""
    figure = matplotlib.figure.Figure(figsize=(6.5 * len(contexts), 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(contexts), squeeze=False)
    for column, (name, used) in enumerate(contexts.items()):
        _draw_times(axes[0][column], [run for run in runs if run.path == name], name)
        _draw_context(axes[1][column], used)
    figure.savefig(path, dpi=120)


def _draw_times(axis: matplotlib.axes.Axes, runs: Sequence[Run], title: str) -> None:
    for run in runs:
        axis.plot(range(len(run.chunk_seconds)), run.chunk_seconds, marker="o", label=run.variant)
    axis.set(title=title, xlabel="chunk", ylabel="seconds (compilation included)", yscale="log")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.legend()


def _draw_context(axis: matplotlib.axes.Axes, used: torch.Tensor) -> None:
    axis.imshow(used, aspect="auto", cmap="viridis", interpolation="nearest")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(title="frames made (yellow) and looked back at (green)", xlabel="latent frame", ylabel="chunk")
