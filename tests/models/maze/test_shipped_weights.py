"""The weights of `maze:base` that the package has: whole, as their card says, and of a model that remembers."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from lightint_compile.evaluating.metrics import psnr
from lightint_compile.models.maze import Maze, MazePath, MazeWorld, there_and_back
from lightint_compile.models.registry import TRUE, world_model
from lightint_compile.models.world_model import ChunkResult

pytest.importorskip("torchmetrics")


@pytest.fixture(scope="module")
def world() -> MazeWorld:
    made = world_model(TRUE)
    assert isinstance(made, MazeWorld) and made.is_trained
    return made


def test_the_card_is_of_these_weights(world: MazeWorld) -> None:
    card = json.loads((world.weights / "card.json").read_text(encoding="utf-8"))
    parts = {"transformer": world.module().transformer, "codec": world.codec()}
    counted = {name: sum(each.numel() for each in part.parameters()) for name, part in parts.items()}
    assert card["model"] == TRUE and card["parameters"] == counted
    assert sum(each.stat().st_size for each in world.weights.rglob("*.safetensors")) < 60e6
    scores = card["scores"][card["shipped"]]
    assert all(each["model psnr"] > each["first frame psnr"] for each in scores.values())


def test_the_codec_knows_the_mazes(world: MazeWorld) -> None:
    maze = Maze.from_seed(11)
    frames, _ = world.truth(maze, there_and_back(maze, "left-3", 8, 11))
    codec = world.codec()
    with torch.no_grad():
        seen = codec.decode_video(codec.encode(frames).transpose(0, 1)[None])[0]
    assert mean_psnr(seen, frames) > 25.0


def test_what_was_seen_comes_back(world: MazeWorld) -> None:
    """A turn away and back: its last chunk is nearer to the truth than the view turned away from is."""
    maze = Maze.from_seed(11)
    path = there_and_back(maze, "left-7", 16, 11)
    truth, _ = world.truth(maze, path)
    frames = rolled(world, maze, path)
    again = mean_psnr(frames[-2:], truth[-2:])
    assert again > 17.0 and again > mean_psnr(truth[8:9].expand(2, -1, -1, -1), truth[-2:]) + 2.0


def rolled(world: MazeWorld, maze: Maze, path: MazePath) -> Tensor:
    codec, results = world.codec(), list[ChunkResult]()
    with torch.no_grad():
        results.extend(world.rollout(world.module(), world.scene_at(maze, path), path))
        return torch.cat([codec.decode_video(each.latents)[0] for each in results])


def mean_psnr(frames: Tensor, truth: Tensor) -> float:
    return float(psnr(frames, truth).mean())
