"""The evaluation itself: every variant along every walk, results kept as they come, then rows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from torch import Tensor

from lightint_compile.bench.about import about, machine, write
from lightint_compile.error_budget.deviation import deviation_of
from lightint_compile.errors import InputError
from lightint_compile.models.registry import TRUE

from .asked import checked_families, true_world
from .baselines import BASELINES
from .metrics import check_torchmetrics
from .results import Result, quality, rows_of
from .revisits import revisited
from .rolling import roll
from .table import with_speed
from .true_world import FAMILIES, TrueWorld, Walk
from .variants import EAGER, Opened, Setup, Variant, variants_of
from .work_file import WorkFile, fingerprint

VARIANTS = ("eager", "no-memory", "other-seed", "other-dtype", "published", "all")
"""What is judged unless told otherwise."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Plan:
    """What to evaluate.

    Attributes:
        scenes: of each family.
        latents: latent frames of a rollout, `given` chunks of truth in front included.
        delegate: what compiles the graphs of compiled variants; Inductor unless given.
        weights: a folder of trained weights, as training writes it; the package's unless given.
    """

    model: str = TRUE
    variants: Sequence[str] = VARIANTS
    families: Sequence[str] = FAMILIES
    scenes: int = 16
    latents: int = 64
    given: int = 1
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: str = "float32"
    delegate: str | None = None
    weights: Path | None = None

    def checked(self, world: TrueWorld) -> None:
        """Raise InputError unless the frames are whole chunks and leave some to judge."""
        spec = world.model.spec
        if self.latents != spec.frames(spec.chunks(self.latents)) or spec.chunks(self.latents) <= self.given:
            why, fix = (
                f"a chunk has {spec.chunk} frames, {self.given} chunks are given",
                f"give a multiple of {spec.chunk}",
            )
            raise InputError(f"{self.latents} latent frames cannot be judged", where="--latents", why=why, fix=fix)


def evaluate(plan: Plan, json_file: Path | None = None, console: Console | None = None) -> dict[str, Any]:
    """Roll out what was not done before; plain data with `settings`, `about` and `rows`, also written to the file.

    Raises:
        OptionError: a variant, or an option of one, that there is not.
        InputError: a model without truth, a family that there is not, or frames that are no whole chunks.
    """
    check_torchmetrics()
    variants, families = variants_of(plan.variants), checked_families(plan.families)
    world = true_world(plan.model, plan.device, plan.seed, plan.weights)
    plan.checked(world)
    settings = settings_of(plan, world)
    work = WorkFile(json_file, {**machine(plan.device), **settings})
    judging = Judging(plan, world, families, work, console or Console())
    judging.run(variants)
    order = [each.name for each in variants] + list(BASELINES)
    results = sorted(judging.work.results, key=lambda each: order.index(each.variant) if each.variant in order else -1)
    found = {
        "settings": settings,
        "about": about(plan.device),
        "rows": with_speed([row for row in rows_of(results) if row["variant"] in order]),
    }
    if json_file is not None:
        write(json_file, found, plan.device)
    judging.work.close()
    return found


def settings_of(plan: Plan, world: TrueWorld) -> dict[str, Any]:
    """What a result depends on besides its variant and walk."""
    import lightint_compile

    return {
        "model": plan.model,
        "weights": fingerprint(world.model.module()),
        "latents": plan.latents,
        "given_chunks": plan.given,
        "seed": plan.seed,
        "device": str(plan.device),
        "dtype": plan.dtype,
        "delegate": plan.delegate or "inductor",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "lightint": lightint_compile.__version__,
    }


@dataclass(frozen=True)
class Scene:
    """A walk and its truth: frames [F, 3, H, W] in half precision, which rounds below what 8 bits show."""

    walk: Walk
    frames: Tensor
    latents: Tensor
    seen_again: Tensor


@dataclass
class Judging:
    """An evaluation under way.

    Attributes:
        reference: the variant whose latents all errors and all `psnr_eager` are of; it runs before the others.
    """

    plan: Plan
    world: TrueWorld
    families: Sequence[str]
    work: WorkFile
    console: Console
    reference: str = EAGER
    _scenes: dict[str, Scene] = field(default_factory=dict)
    _compared: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def walks(self) -> list[Walk]:
        """Every walk, family by family."""
        numbers = range(self.plan.scenes)
        return [self.world.walk(family, number, self.plan.latents) for family in self.families for number in numbers]

    @property
    def _given(self) -> int:
        return self.world.model.spec.frames(self.plan.given)

    def run(self, variants: Sequence[Variant]) -> None:
        """What was not done before, variant by variant."""
        setup = Setup(self.world, self.plan.device, DTYPES[self.plan.dtype], self.plan.delegate)
        columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("{task.fields[last]}"), console=self.console) as progress:
            for variant in variants:
                task = progress.add_task(variant.name, total=len(self.walks), last="")
                for done in self._variant(variant, setup):
                    self._tell(progress, task, variant.name, done)
        for walk in self.walks:
            for name in BASELINES:
                if not self.work.has(name, walk):
                    self.work.add(self._baseline(name, self.scene(walk)))

    def _tell(self, progress: Progress, task: TaskID, name: str, done: Result | None) -> None:
        last = "" if done is None else f"{sum(done.milliseconds) / len(done.milliseconds):.0f} ms a chunk"
        progress.update(task, advance=1, last=last)
        if done is not None and not self.console.is_terminal:
            self.console.print(f"{name}, {done.family} {done.number}: {last}", highlight=False)

    def scene(self, walk: Walk) -> Scene:
        """A walk with its truth, rendered once."""
        if walk.name not in self._scenes:
            frames = self.world.truth(walk)
            seen = revisited(walk.path, self.world.model.spec)
            self._scenes[walk.name] = Scene(walk, frames.half(), self.world.encode(frames).cpu(), seen)
        return self._scenes[walk.name]

    def _variant(self, variant: Variant, setup: Setup) -> Iterator[Result | None]:
        waiting = [walk for walk in self.walks if not self.work.has(variant.name, walk)]
        yield from [None] * (len(self.walks) - len(waiting))
        if not waiting:
            return
        with variant.opened(setup) as opened:
            cold = self._warm_up(opened, waiting[0])
            for walk in waiting:
                yield self._rollout(variant.name, opened, self.scene(walk), cold)

    def _warm_up(self, opened: Opened, walk: Walk) -> float:
        """Seconds of the first calls; those that compile go on until the memory is full."""
        scene, spec = self.scene(walk), opened.model.spec
        free = spec.chunks(self.plan.latents) - self.plan.given
        chunks = min(free, spec.chunks(spec.memory) + 1 if opened.compiles else 1)
        start = time.perf_counter()
        given = scene.latents[:, :, : self._given]
        roll(opened, self.world, walk, given, self.plan.seed, self.plan.device, chunks=chunks)
        return time.perf_counter() - start

    def _rollout(self, name: str, opened: Opened, scene: Scene, cold: float) -> Result:
        given, walk = scene.latents[:, :, : self._given], scene.walk
        rolled = roll(opened, self.world, walk, given, self.plan.seed + walk.number, self.plan.device)
        if name == self.reference:
            self.work.keep_reference(walk, rolled.latents)
        start = time.perf_counter()
        self.world.decode(rolled.latents[:, :, self._given : self._given + self.world.model.spec.chunk])
        decoding = 1e3 * (time.perf_counter() - start)
        result = Result(
            **self._judged(name, scene, self.world.decode(rolled.latents[:, :, self._given :])),
            relative_errors=self._errors(walk, rolled.latents),
            milliseconds=rolled.milliseconds,
            decoding_milliseconds=decoding,
            cold_seconds=cold,
            recompiles=rolled.recompiles,
            host_reads=rolled.host_reads,
            computed_steps=rolled.computed_steps,
            refused_steps=rolled.refused_steps,
            peak_gigabytes=rolled.peak_gigabytes,
        )
        self.work.add(result)
        return result

    def _errors(self, walk: Walk, latents: Tensor) -> tuple[float, ...]:
        """Of every chunk that was not given."""
        size = self.world.model.spec.chunk
        pairs = zip(
            *(each[:, :, self._given :].split(size, dim=2) for each in (self.work.reference(walk), latents)),
            strict=True,
        )
        return tuple(deviation_of([wanted], [got]).relative for wanted, got in pairs)

    def _baseline(self, name: str, scene: Scene) -> Result:
        frames = BASELINES[name](self.world, scene.frames.float(), scene.latents, self._given)
        return Result(**self._judged(name, scene, frames))

    def _judged(self, name: str, scene: Scene, frames: Tensor) -> dict[str, Any]:
        """What a result says of frames [F, 3, H, W] behind the given ones."""
        walk = scene.walk
        return {
            "variant": name,
            "family": walk.family,
            "number": walk.number,
            "seed": walk.seed,
            "chunk": self.world.model.spec.chunk,
            "revisited": tuple(scene.seen_again[self._given :].tolist()),
            **quality(frames, scene.frames[self._given :].float(), self._reference_frames(walk)),
        }

    def _reference_frames(self, walk: Walk) -> Tensor:
        """What the reference showed behind the given frames, decoded once."""
        if walk.name not in self._compared:
            self._compared[walk.name] = self.world.decode(self.work.reference(walk)[:, :, self._given :])
        return self._compared[walk.name]
