"""The weights of the maze that the package has: all there, as their cards say, and of models that remember."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from lightint_compile.evaluating.metrics import psnr
from lightint_compile.models.maze import Maze, MazePath, MazeWorld, there_and_back
from lightint_compile.models.maze.world_model import WEIGHTS
from lightint_compile.models.registry import TRUE, world_model
from lightint_compile.models.world_model import ChunkResult

pytest.importorskip("torchmetrics")


@pytest.fixture(scope="module")
def world() -> MazeWorld:
    return shipped(TRUE)


LARGE = TRUE.replace("base", "large")


def shipped(name: str) -> MazeWorld:
    made = world_model(name)
    assert isinstance(made, MazeWorld) and made.is_trained
    return made


@pytest.mark.parametrize("name", [TRUE, LARGE])
def test_the_card_is_of_these_weights(name: str) -> None:
    world = shipped(name)
    card = json.loads((world.weights / "card.json").read_text(encoding="utf-8"))
    parts = {"transformer": world.module().transformer, "codec": world.codec()}
    counted = {name: sum(each.numel() for each in part.parameters()) for name, part in parts.items()}
    assert card["model"] == name and card["parameters"] == counted
    scores = card["scores"][card["shipped"]]
    assert all(each["model psnr"] > each["first frame psnr"] for each in scores.values())


def test_all_of_them_are_small_and_memory_is_used() -> None:
    assert sum(each.stat().st_size for each in WEIGHTS.rglob("*.safetensors")) < 60e6
    for name in (TRUE, LARGE):
        card = json.loads((shipped(name).weights / "card.json").read_text(encoding="utf-8"))
        scores = card["scores"][card["shipped"]]
        for kind in ("turn", "walk"):
            assert scores[kind]["model psnr_again"] > scores[kind]["forgetful psnr_again"] + 1.5


def test_the_codec_knows_the_mazes(world: MazeWorld) -> None:
    maze = Maze.from_seed(11)
    frames, _ = world.truth(maze, there_and_back(maze, "left-3", 8, 11))
    codec = world.codec()
    with torch.no_grad():
        seen = codec.decode_video(codec.encode(frames).transpose(0, 1)[None])[0]
    assert mean_psnr(seen, frames) > 25.0


@pytest.mark.parametrize(
    ("name", "turn", "length"),
    [
        (TRUE, "left-3", 8),
        pytest.param(TRUE, "left-5", 12, marks=pytest.mark.slow),
        *(pytest.param(name, "left-7", 16, marks=pytest.mark.slow) for name in (TRUE, LARGE)),
    ],
)
def test_what_was_seen_comes_back(name: str, turn: str, length: int) -> None:
    """A turn away and back: its last chunk is nearer to the truth than the view turned away from is."""
    world = shipped(name)
    maze = Maze.from_seed(11)
    path = there_and_back(maze, turn, length, 11)
    truth, _ = world.truth(maze, path)
    frames = rolled(world, maze, path)
    again = mean_psnr(frames[-2:], truth[-2:])
    away = truth[length // 2].expand(2, -1, -1, -1)
    assert again > 17.0 and again > mean_psnr(away, truth[-2:]) + 2.0


def rolled(world: MazeWorld, maze: Maze, path: MazePath) -> Tensor:
    codec, results = world.codec(), list[ChunkResult]()
    with torch.no_grad():
        results.extend(world.rollout(world.module(), world.scene_at(maze, path), path))
        return torch.cat([codec.decode_video(each.latents)[0] for each in results])


def mean_psnr(frames: Tensor, truth: Tensor) -> float:
    return float(psnr(frames, truth).mean())
