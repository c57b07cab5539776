"""The demo of a world whose truth is known: eager beside lightint along one walk; a film, a table, the report."""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

import lightint_compile
from lightint_compile.demo.canvas import ORIGINAL, OURS
from lightint_compile.demo.film import Film
from lightint_compile.demo.ground import Ground
from lightint_compile.demo.quality import LEGEND, row_of, table
from lightint_compile.demo.side import Side
from lightint_compile.demo.video import check_video, write_gif, write_mp4
from lightint_compile.evaluating.metrics import check_torchmetrics, psnr
from lightint_compile.evaluating.revisits import revisited
from lightint_compile.evaluating.rolling import Rolled, roll
from lightint_compile.evaluating.true_world import TrueWorld, Walk
from lightint_compile.evaluating.variants import EAGER, Opened, Setup, variant_of
from lightint_compile.models.world_model import CameraPath, WorldModel
from lightint_compile.options import LightintOptions
from lightint_compile.reporting import Report
from lightint_compile.runtime.decision import Decision

CHUNKS = 12
"""Enough that memory is full and the camera comes back to what only older frames show."""

GIVEN = 1
"""Chunks of encoded truth that both rollouts start from, as in `lightint evaluate`."""

UNTRAINED = (
    "[bold yellow]{model} has no trained weights: they are random, and what it shows is no picture of the scene.[/] "
    "Time and decisions are those of a model of this size; quality says nothing. `lightint train` makes weights."
)


@dataclass(frozen=True)
class Job:
    """What is rolled out, and where it is told."""

    world: TrueWorld
    walk: Walk
    frames: Tensor
    setup: Setup
    seed: int
    console: Console

    @property
    def given(self) -> Tensor:
        """Latents [1, C, F, h, w] that both rollouts start from."""
        spec = self.world.model.spec
        return self.world.encode(self.frames[: spec.frames(GIVEN)]).cpu()

    @property
    def chunks(self) -> int:
        """Chunks that are not given."""
        return self.world.model.spec.chunks(len(self.frames)) - GIVEN


def film_truth(
    out: Path,
    name: str,
    world: TrueWorld,
    *,
    chunks: int = CHUNKS,
    preset: str,
    seed: int = 0,
    delegate: str | None = None,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Roll the model out as it is and by lightint along one walk; write the film, the report and the table's rows.

    Raises:
        OptionError: an unknown preset.
        InputError: a package that the film or the figures need is not installed.
    """
    check_torchmetrics()
    check_video()
    console = console or Console()
    out.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*no trained weights")
        _introduce(name, world, chunks, preset, console)
        setup = Setup(world, torch.device("cpu"), torch.float32, delegate)
        walk = world.tour(world.model.spec.frames(chunks))
        with _told(console, "rendering the truth"):
            frames = world.truth(walk)
        job = Job(world, walk, frames, setup, seed, console)
        original, _ = _side(job, EAGER, "original", "PyTorch, eager")
        ours, report = _side(job, preset, "lightint", f"lightint, {preset}")
    return _finish(out, name, job, (original, ours), report)


def _introduce(name: str, world: TrueWorld, chunks: int, preset: str, console: Console) -> None:
    options = LightintOptions.from_mapping({"preset": preset})
    threads = torch.get_num_threads()
    console.print(
        f"{name}: {world.model}\n{chunks} chunks, {GIVEN} of them given, out and back the same way, on the CPU with "
        f"{threads} threads; lightint with {options}.",
        highlight=False,
    )
    if not world.is_trained:
        console.print(UNTRAINED.format(model=name), highlight=False)


@contextlib.contextmanager
def _told(console: Console, what: str) -> Iterator[None]:
    start = time.perf_counter()
    with console.status(what):
        yield
    console.print(f"{what}: {time.perf_counter() - start:.1f} s", highlight=False)


def _side(job: Job, variant: str, short: str, name: str) -> tuple[Side, Report | None]:
    """The walk once to warm up, of a model that compiles, and once on the clock."""
    given = job.given
    with variant_of(variant).opened(job.setup) as opened:
        start = time.perf_counter()
        if opened.compiles:
            _rolled(job, opened, given, f"{short}, first calls", job.chunks)
        else:
            _rolled(job, opened, given, f"{short}, first call", 1)
        cold = time.perf_counter() - start
        rolled = _rolled(job, opened, given, short, job.chunks)
        with _told(job.console, f"{short}, decoding"):
            shown = job.world.decode(rolled.latents)
        decided = lightint_compile.decisions(opened.call) if opened.compiles else []
        decisions = _every(job.world.model, job.walk.path, decided)
        report = lightint_compile.report(opened.call) if opened.compiles else None
    colour = OURS if report else ORIGINAL
    return Side(name, colour, shown, rolled.milliseconds, cold, decisions), report


def _rolled(job: Job, opened: Opened, given: Tensor, what: str, chunks: int) -> Rolled:
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[last]}"), console=job.console) as progress:
        task = progress.add_task(what, total=chunks, last="")

        def after_chunk(milliseconds: float) -> None:
            progress.update(task, advance=1, last=f"{milliseconds:.0f} ms a chunk")

        device = torch.device("cpu")
        return roll(opened, job.world, job.walk, given, job.seed, device, chunks=chunks, after_chunk=after_chunk)


def _every(model: WorldModel, path: CameraPath, decided: list[Decision]) -> list[Decision]:
    """A decision for every chunk: what the model does by itself, where nothing was decided."""
    known, spec = {each.chunk: each for each in decided}, model.spec

    def own(chunk: int) -> Decision:
        return Decision(chunk=chunk, context_frames=tuple(model.context_frames(path, spec.frames(chunk))))

    return [known.get(chunk) or own(chunk) for chunk in range(spec.chunks(len(path)))]


def _finish(out: Path, name: str, job: Job, sides: tuple[Side, Side], report: Report | None) -> list[dict[str, Any]]:
    spec, first = job.world.model.spec, job.world.model.spec.frames(GIVEN)
    quality = [psnr(side.frames, job.frames) for side in sides]
    alike = psnr(sides[0].frames[first:], sides[1].frames[first:])
    again = revisited(job.walk.path, spec)[first:]
    rows = [row_of(side, each[first:], again, alike) for side, each in zip(sides, quality, strict=True)]
    ground = Ground.of(job.world.from_above(job.walk), job.walk.path.intrinsics)
    weights = "" if job.world.is_trained else ", weights random (untrained)"
    threads = torch.get_num_threads()
    title = f"{name}{weights} · {threads} CPU thread{'s' * (threads > 1)} · each reads its own frames"
    film = Film(title, job.frames, sides, ground, spec, GIVEN, quality)
    with _told(job.console, "drawing the film"):
        pictures = list(film.pictures())
        write_mp4(out / "demo.mp4", pictures)
        write_gif(out / "demo.gif", pictures)
        pictures[-1].save(out / "demo.png")
    assert report is not None
    report.to_html(out / "report.html")
    (out / "report.txt").write_text(str(report) + "\n", encoding="utf-8")
    (out / "measurements.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    job.console.print(table(rows))
    job.console.print(LEGEND, highlight=False, markup=False)
    job.console.print(f"film: {out / 'demo.mp4'} and {out / 'demo.gif'}\npage: {out / 'report.html'}", highlight=False)
    return rows
