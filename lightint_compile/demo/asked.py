"""Which demo a model gets: a film beside the truth where its world has one, else a comparison of backends."""

from __future__ import annotations

from pathlib import Path

import torch

from lightint_compile.demo.film_job import CHUNKS, film_truth
from lightint_compile.demo.job import LEAST_CHUNKS, compare_backends
from lightint_compile.errors import DeviceError, OptionError
from lightint_compile.evaluating.asked import truth_of
from lightint_compile.models.registry import DEMO, TRUE, world_model
from lightint_compile.models.world_model import with_weights
from lightint_compile.options import DEFAULT_PRESET, LightintOptions

COMPARED_CHUNKS, COMPARED_PRESET = 8, "exact"
"""Where random weights have no truth: what approximations cost cannot be seen."""


def run_demo(
    out: Path,
    *,
    chunks: int | None = None,
    preset: str | None = None,
    threads: int = 0,
    seed: int = 0,
    model: str = TRUE,
    weights: Path | None = None,
) -> None:
    """Roll the model out along a camera path, the ways to run it beside each other; write everything into ``out``.

    Args:
        chunks: by default 12 beside the truth, else 8.
        preset: by default ``all`` beside the truth, else ``exact``.
        threads: of PyTorch; 0 keeps its default.
        seed: of the noise, and of the scene or weights.
        model: its name, ``family:size``.
        weights: a folder of trained ones; those of the package unless given.

    Raises:
        OptionError: an unknown preset, or too few chunks.
        InputError: there is no such model, no weights in the folder, or a package of the extra ``demo`` is missing.
        DeviceError: the model is too large for a CPU.
    """
    chosen = with_weights(world_model(model), weights)
    if chunks is not None and chunks < LEAST_CHUNKS:
        raise OptionError(f"{chunks} chunks are too few", where="--chunks", fix=f"give {LEAST_CHUNKS} or more")
    if preset is not None:
        LightintOptions.from_mapping({"preset": preset})
    if chosen.needs_gpu:
        raise DeviceError(f"{model} is too large for a CPU", where="--model", fix=f"name a smaller size, as {DEMO}")
    if threads:
        torch.set_num_threads(threads)
    world = truth_of(chosen, torch.device("cpu"), seed)
    if world is None:
        compare_backends(out, chosen, chunks=chunks or COMPARED_CHUNKS, preset=preset or COMPARED_PRESET, seed=seed)
    else:
        film_truth(out, model, world, chunks=chunks or CHUNKS, preset=preset or DEFAULT_PRESET, seed=seed)
