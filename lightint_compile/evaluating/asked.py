"""The world and the families of paths that a caller names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from lightint_compile.errors import InputError, did_you_mean
from lightint_compile.models.maze import MazeWorld
from lightint_compile.models.registry import model_names, world_model
from lightint_compile.models.world_model import WorldModel, with_weights

from .maze_truth import MazeTruth
from .true_world import FAMILIES, TrueWorld


def true_world(name: str, device: torch.device, seed: int, weights: Path | None = None) -> TrueWorld:
    """The world called `family:size`, with the weights of a folder where one is named.

    Raises:
        InputError: there is no such model, none whose poses can be rendered, or the folder has no weights.
    """
    world = truth_of(with_weights(world_model(name), weights), device, seed)
    if world is None:
        known = ", ".join(each for each in model_names() if each.startswith("maze:"))
        why = "nothing renders the truth of its poses"
        raise InputError(f"{name} cannot be judged", where="--model", why=why, fix=f"name one of {known}")
    return world


def truth_of(model: WorldModel, device: torch.device, seed: int) -> TrueWorld | None:
    """The world of a model, where its poses can be rendered."""
    return MazeTruth(model, device, seed) if isinstance(model, MazeWorld) else None


def checked_families(names: Sequence[str]) -> tuple[str, ...]:
    """The families, when all are known.

    Raises:
        InputError: one is not; with a hint.
    """
    for name in names:
        if name not in FAMILIES:
            fix = did_you_mean(name, FAMILIES)
            raise InputError(f"there is no family of paths {name!r}", where="--families", fix=fix)
    return tuple(dict.fromkeys(names))
