"""What a training tells: a progress bar, a line of JSON every few steps, and a picture of the losses."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.figure
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from torch import Tensor

from lightint_compile.read_back import UnreadableError, a_number, parsed
from lightint_compile.training.clock import PhaseClock

_SMOOTHING = 0.05


class Logbook:
    """Writes `log.jsonl` and `loss.png` in a folder; where that is None, as in all processes but one, nothing."""

    def __init__(self, folder: Path | None, console: Console | None = None) -> None:
        self.folder = folder
        self.console = console or Console(quiet=folder is None)
        self._last = time.monotonic()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def say(self, text: str) -> None:
        """One line to the terminal."""
        self.console.print(text, highlight=False, markup=False)

    def write(self, **row: Any) -> None:
        """One line to the file."""
        if self.folder is not None:
            with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    @contextmanager
    def phase(self, name: str) -> Iterator[Bar]:
        """The progress bar of a phase."""
        columns = (TextColumn("{task.description:<8}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(
            *columns, TextColumn("{task.fields[last]}"), console=self.console, auto_refresh=False
        ) as progress:
            yield Bar(self, name, progress)

    def draw(self) -> None:
        """The picture of all losses in the file."""
        if self.folder is None or not (self.folder / "log.jsonl").exists():
            return
        lines = (self.folder / "log.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
        rows = list(filter(None, map(_loss, lines)))
        names = list(dict.fromkeys(name for name, _, _ in rows))
        if not names:
            return
        figure = matplotlib.figure.Figure(figsize=(5 * len(names), 4), layout="constrained")
        FigureCanvasAgg(figure)
        for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            axis.plot(*zip(*((step, loss) for phase, step, loss in rows if phase == name), strict=True))
            axis.set(title=name, xlabel="step", ylabel="loss", yscale="log")
            axis.grid(alpha=0.3)
        figure.savefig(self.folder / "loss.png", dpi=110)


def _loss(line: str) -> tuple[str, float, float] | None:
    """Phase, step and loss of a line; nothing where it has none, or was cut off."""
    try:
        return parsed(line, lambda row: (str(row["phase"]), a_number(row["step"]), a_number(row["loss"])))
    except UnreadableError:
        return None


class Bar:
    """The progress of one phase; losses stay on the device between the lines that are written."""

    def __init__(self, book: Logbook, name: str, progress: Progress) -> None:
        self._book, self._name, self._progress = book, name, progress
        self._task = progress.add_task(name, total=1.0, last="")
        self._smooth: Tensor | None = None
        self._told, self._steps, self._shown = time.monotonic(), 0, time.monotonic()

    def step(self, clock: PhaseClock, loss: Tensor, rate: float, every: int = 10) -> None:
        """A step was made; every `every` steps a line is written."""
        loss = loss.detach()
        self._smooth = loss if self._smooth is None else self._smooth.lerp(loss, _SMOOTHING)
        self._steps += 1
        if clock.steps % every:
            return
        now = time.monotonic()
        speed = self._steps / max(now - self._told, 1e-9)
        value = float(self._smooth)
        row = {"phase": self._name, "step": clock.steps, "seconds": round(clock.seconds, 1), "loss": value}
        self._book.write(**row, rate=rate, steps_per_second=round(speed, 3))
        last = f"step {clock.steps}  loss {value:.4f}  {speed:.2f} steps/s"
        self._progress.update(self._task, completed=clock.fraction, last=last)
        self._progress.refresh()
        if not self._progress.console.is_terminal and now - self._shown > 15:
            self._book.say(f"{self._name} {clock.fraction:4.0%}  {last}")
            self._shown = now
        self._told, self._steps = now, 0
