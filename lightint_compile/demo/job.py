"""The demo without truth: random weights, two camera paths, three variants; a table, a picture and the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache

import lightint_compile
from lightint_compile.demo.handheld import handheld_path
from lightint_compile.demo.measure import Run, measure
from lightint_compile.demo.picture import context_map, draw
from lightint_compile.demo.table import LEGEND, summary, table
from lightint_compile.errors import OptionError
from lightint_compile.models.world_model import CameraPath, WorldModel, turn_and_back
from lightint_compile.options import LightintOptions
from lightint_compile.reporting import Report
from lightint_compile.reporting.text import sentence, sizes

VARIANTS = ("eager", "inductor", "lightint")
"""In the order they run: the first is what the others are compared with."""

DEPTH = 3
"""Blocks at most: Inductor compiles all of the unrolled chunk, and its time grows with every block."""

LEAST_CHUNKS = 3
"""Two chunks may compile; a third shows what a chunk costs."""


@dataclass(frozen=True)
class Setup:
    """What all variants share: the model, its scene, and the camera paths by name."""

    model: WorldModel
    chunk: nn.Module
    scene: Any
    paths: Mapping[str, CameraPath]
    seed: int

    @classmethod
    def make(cls, model: WorldModel, chunks: int, seed: int) -> Setup:
        """Random weights and inputs, a look to the left and back, and a hand-held walk, of ``chunks`` chunks each."""
        if chunks < LEAST_CHUNKS:
            raise OptionError(f"{chunks} chunks are too few", where="--chunks", fix=f"give {LEAST_CHUNKS} or more")
        frames = model.spec.frames(chunks)
        turn = turn_and_back(model.spec, frames)
        paths = {turn: model.camera_path(turn), "hand-held": handheld_path(model, frames, seed)}
        return cls(model, model.module(seed=seed), model.scene(seed=seed), paths, seed)


def compare_backends(out: Path, model: WorldModel, *, chunks: int, preset: str, seed: int = 0) -> list[Run]:
    """Roll every variant out along every path; print the table and write everything into ``out``.

    Args:
        model: of which at most :data:`DEPTH` blocks are run.

    Raises:
        OptionError: an unknown preset, or too few chunks.
    """
    options = LightintOptions.from_mapping({"preset": preset})
    setup = Setup.make(model.at_depth(min(model.depth, DEPTH)), chunks, seed)
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    console.print(_introduction(setup, chunks, options))
    runs, report = _all_variants(setup, options, chunks, console)
    _finish(out, setup, runs, report, console)
    return runs


def _introduction(setup: Setup, chunks: int, options: LightintOptions) -> str:
    size = sum(parameter.numel() for parameter in setup.chunk.parameters()) / 1e6
    return (
        f"{setup.model}: {size:.1f} M random weights. The hand-held path is made up, not recorded.\n"
        f"{chunks} chunks along each of {len(setup.paths)} camera paths, on the CPU with {torch.get_num_threads()} "
        f"threads; lightint with {options}. Compilation starts cold."
    )


def _all_variants(setup: Setup, options: LightintOptions, chunks: int, console: Console) -> tuple[list[Run], Report]:
    runs: list[Run] = []
    columns = (TextColumn("{task.description:<30}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[last]}"), console=console) as progress:
        for variant in VARIANTS:
            with _compiled(variant, setup.chunk, options) as chunk:
                runs += list(_along_paths(variant, chunk, setup, chunks, progress))
                if variant == "lightint":
                    report = lightint_compile.report(chunk)
    return runs, report


def _along_paths(
    variant: str, chunk: Callable[..., Tensor], setup: Setup, chunks: int, progress: Progress
) -> Iterator[Run]:
    for path, trajectory in setup.paths.items():
        task = progress.add_task(f"{variant}, {path}", total=chunks, last="")

        def after_chunk(seconds: float, task: Any = task) -> None:
            progress.update(task, advance=1, last=f"{seconds:.2f} s a chunk")

        run = measure(
            variant,
            path,
            chunk,
            setup.model,
            setup.scene,
            trajectory,
            seed=setup.seed,
            after_chunk=after_chunk,
        )
        if not progress.console.is_terminal:
            progress.console.print(f"{variant}, {path}: {run.steady_seconds:.2f} s a chunk", highlight=False)
        yield run


@contextmanager
def _compiled(variant: str, chunk: nn.Module, options: LightintOptions) -> Iterator[Callable[..., Tensor]]:
    """The module as the variant runs it, with empty caches, so that compile times are those of a first start."""
    if variant == "eager":
        yield chunk
        return
    torch._dynamo.reset()
    given = options.to_dict() if variant == "lightint" else None
    with fresh_cache():
        yield torch.compile(chunk, backend=variant, options=given)


def _finish(out: Path, setup: Setup, runs: list[Run], report: Report, console: Console) -> None:
    rows = summary(runs, report.rewritten)
    console.print(table(rows))
    console.print(LEGEND, highlight=False, markup=False)
    console.print("\nwhat lightint rewrote, graph by graph (all of it in report.txt and report.html):")
    for section in report.sections:
        console.print(f"  {section.name}: {sentence(section)}; {sizes(section)}", highlight=False, markup=False)
    contexts = {name: context_map(setup.model, path) for name, path in setup.paths.items()}
    draw(out / "demo.png", runs, contexts)
    (out / "report.txt").write_text(str(report) + "\n", encoding="utf-8")
    report.to_html(out / "report.html")
    (out / "report.json").write_text(json.dumps(report.to_dict(), indent=1), encoding="utf-8")
    (out / "measurements.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    console.print(f"written: {', '.join(str(out / name) for name in _FILES)}")


_FILES = ("demo.png", "report.txt", "report.html", "report.json", "measurements.json")
