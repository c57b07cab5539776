"""Frames a second from noise to host memory: DiT, VAE and transfer of every chunk, variant after variant.

Every variant runs in a process of its own and has the device to itself while it is timed, at the depth that is asked
for: nothing here is extrapolated. Latents are decoded chunk by chunk, in line or while the next chunk is denoised.
Weights are random where the model's are. The text encoder is included if that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from lightint_compile.bench.about import write
from lightint_compile.bench.end_to_end.decoder import check_shown
from lightint_compile.bench.end_to_end.film import Film
from lightint_compile.bench.end_to_end.job import Asked, EndToEnd
from lightint_compile.bench.end_to_end.prompt import prompt_encoder
from lightint_compile.bench.end_to_end.result import Result
from lightint_compile.bench.end_to_end.table import print_result, print_table
from lightint_compile.bench.processes import Kind, side_by_side
from lightint_compile.bench.rollout_job import device_for, jobs_of
from lightint_compile.models.registry import LARGE, world_model
from lightint_compile.models.world_model import turn_and_back

__all__ = ["Asked", "EndToEnd", "Result", "jobs", "measured", "run"]

VARIANTS = ("eager", "exact", "published", "all", "all:drift=1e9")
"""What is compared unless told otherwise. Inductor unrolls every block of a whole model, so it has to be asked for."""

FILM = Kind(Film, Result)
"""How a variant is measured."""


def run(
    *,
    model: str = LARGE,
    variants: Sequence[str] = (),
    depth: int | None = None,
    trajectory: str | None = None,
    chunks: int | None = None,
    repeats: int = 3,
    asked: Asked | None = None,
    at_once: int | None = None,
    patience: float = 3600.0,
    timeline: Path | None = None,
    json_file: Path | None = None,
) -> None:
    """Measure and print.

    Args:
        variants: as of a rollout; :data:`VARIANTS` unless given.
        depth: blocks; all of the model's unless given.
        trajectory: the camera path; a turn to the left and back unless given.
        chunks: chunks of that turn; as many as make 64 latent frames or more unless given.
        repeats: rollouts of each variant; the median counts.
        asked: how latents are decoded.
        at_once: variants that compile at once, and have their weights on the device; one unless given.
        patience: seconds after which a variant counts as failed.
        timeline: where a picture of all chunks along time is written.
        json_file: where results are written as they come.

    Raises:
        DeviceError: the model is too large for a CPU and there is no CUDA, or a device or an overlap cannot be had.
        OptionError: there is no such variant or decoder, or options exclude each other.
        InputError: there is no such model, nothing decodes its latents, or the path cannot be read.
    """
    asked_for = jobs(model, variants or VARIANTS, depth, trajectory, chunks, repeats, asked or Asked())
    results = []
    for result in measured(asked_for, json_file, patience, at_once or 1):
        print_result(result)
        results.append(result)
    print_table(results)
    if timeline is not None:
        from lightint_compile.bench.end_to_end.picture import draw

        draw(timeline, results)


def jobs(
    model: str,
    variants: Sequence[str],
    depth: int | None,
    trajectory: str | None,
    chunks: int | None,
    repeats: int,
    asked: Asked,
) -> list[EndToEnd]:
    """What is measured, checked; arguments and errors are those of :func:`run`."""
    device, chosen = device_for(model), world_model(model)
    check_shown(chosen, model, asked.decoder)
    if asked.text:
        prompt_encoder(chosen, model, chosen.scene("meta"), torch.device("meta"), torch.float32)
    frames = 64 if chunks is None else chosen.spec.frames(chunks)
    path = trajectory or turn_and_back(chosen.spec, frames)
    chosen.camera_path(path)
    made = []
    for variant in variants:
        (job,) = jobs_of(variant, (depth or chosen.depth,), model, path, repeats, device)
        made.append(EndToEnd(job, asked.decoding(device, variant), asked.text))
    return made


def measured(
    asked_for: Sequence[EndToEnd], out: Path | None = None, patience: float = 3600.0, at_once: int = 1
) -> Iterator[Result]:
    """Compile ``at_once`` variants at once, time them in turn; results are also written to ``out`` as they come."""
    results: list[Result] = []
    for first in range(0, len(asked_for), at_once):
        for result in side_by_side(FILM, asked_for[first : first + at_once], patience):
            results.append(result)
            if out is not None:
                write(out, {"rows": [each.written() for each in results]}, result.job.rollout.device)
            yield result
