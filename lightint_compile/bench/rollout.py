"""Seconds of a rollout: eager, Inductor and lightint's presets, side by side on one device.

Every variant compiles in a process of its own, several at once; then one after the other rolls out, so that none is
timed while another works. Weights are random and shapes are the real ones. Blocks are all alike, so a stack of
``depth`` blocks may be measured at two depths, and the full depth follows by a straight line: the table says which
numbers are measured and which are on that line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from lightint_compile.bench.about import write
from lightint_compile.bench.depths import check_depths, default_depths
from lightint_compile.bench.processes import Kind, side_by_side
from lightint_compile.bench.rollout_job import Job, Result, device_for, jobs_of
from lightint_compile.bench.rollout_subject import Subject
from lightint_compile.bench.rollout_table import print_result, print_table
from lightint_compile.models.registry import LARGE, family, world_model
from lightint_compile.models.world_model import turn_and_back

__all__ = ["Job", "Result", "measured", "run", "variants_of"]

VARIANTS = ("eager", "inductor", "exact", "published", "all", "all:drift=1e9")
"""What is compared unless told otherwise. A preset's name is a variant, options of it may follow a colon. Random
weights drift more from step to step than a trained model's, so that ``all`` refuses to reuse any; with a drift that is
never reached it reuses what the cameras allow."""

ROLLOUT = Kind(Subject, Result)
"""How a variant is measured."""

EIGHT_BIT = "-int8"
"""Behind the name of a size: the same in 8 bit."""


def variants_of(model: str) -> tuple[str, ...]:
    """:data:`VARIANTS`, and ``all`` in 8 bit where the family has the size in 8 bit.

    Raises:
        InputError: there is no such family.
    """
    name, _, size = model.partition(":")
    rounded = f"{size}{EIGHT_BIT}"
    return (*VARIANTS, *([f"all@{rounded}"] if rounded in family(name).sizes else []))


def run(
    *,
    model: str = LARGE,
    variants: Sequence[str] = (),
    depths: Sequence[int] = (),
    inductor_depths: Sequence[int] = (),
    trajectory: str | None = None,
    chunks: int | None = None,
    repeats: int = 3,
    at_once: int | None = None,
    patience: float = 3600.0,
    json_file: Path | None = None,
) -> None:
    """Measure and print.

    Args:
        variants: what is compared: ``eager``, ``inductor``, or a preset with options behind a colon; of another size of
            the family behind an ``@``. :func:`variants_of` unless given.
        depths: numbers of blocks that are measured; 2 and 6 unless given.
        inductor_depths: those for Inductor, which unrolls every block; 1 and 2 unless given, or 2 and 4 where blocks
            are of two kinds.
        trajectory: the camera path; a turn to the left and back unless given.
        chunks: chunks of that turn; as many as make 64 latent frames or more unless given.
        repeats: rollouts of each variant; the median counts.
        at_once: variants that compile at once, and have their weights on the device; all unless given.
        patience: seconds after which a variant counts as failed.
        json_file: where results are written as they come.

    Raises:
        DeviceError: the model is too large for a CPU, and there is no CUDA.
        OptionError: there is no such variant, or the depths do not stand for the model.
        InputError: there is no such model, or the path cannot be read.
    """
    device, chosen = device_for(model), world_model(model)
    frames = 64 if chunks is None else chosen.spec.frames(chunks)
    trajectory = trajectory or turn_and_back(chosen.spec, frames)
    chosen.camera_path(trajectory)
    depths = depths or default_depths(chosen, (2, 6))
    inductor_depths = inductor_depths or default_depths(chosen, (1, 2))
    check_depths(chosen, depths, "--depth")
    check_depths(chosen, inductor_depths, "--inductor-depth")
    jobs = []
    for variant in variants or variants_of(model):
        blocks = inductor_depths if variant.partition("@")[0] == "inductor" else depths
        jobs += jobs_of(variant, tuple(blocks), model, trajectory, repeats, device)
    results = []
    for result in measured(jobs, json_file, patience, at_once):
        print_result(result)
        results.append(result)
    print_table(results, chosen.depth)


def measured(
    jobs: Sequence[Job], out: Path | None = None, patience: float = 3600.0, at_once: int | None = None
) -> Iterator[Result]:
    """Compile ``at_once`` jobs at once, time them in turn; results are also written to ``out`` as they come.

    A job that is not ready after ``patience`` seconds, or whose process dies, counts as failed and holds up no other.
    """
    results: list[Result] = []
    size = at_once or len(jobs)
    for first in range(0, len(jobs), size):
        for result in side_by_side(ROLLOUT, jobs[first : first + size], patience):
            results.append(result)
            if out is not None:
                write(out, {"rows": [asdict(each) for each in results]}, result.job.device)
            yield result
