"""The codec, the sizes, and the maze as a world model like any other."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from lightint_compile.cli.app import app
from lightint_compile.errors import InputError
from lightint_compile.models.maze import MazeCodec, MazeWorld
from lightint_compile.models.maze.config import SIZES
from lightint_compile.models.registry import family, world_model

TOKENS = {"tiny": 16, "base": 256, "large": 576}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_what_they_say(name: str) -> None:
    size = SIZES[name]()
    assert size.transformer.tokens_per_frame == TOKENS[name]
    with torch.device("meta"):
        codec = MazeCodec(size.codec).eval()
        latents = codec.encode(torch.empty(2, 3, 3, size.pixels, size.pixels))
        frames = codec.decode_video(latents.transpose(1, 2))
    side = size.transformer.latent_height
    assert tuple(latents.shape) == (2, 3, size.transformer.in_channels, side, side)
    assert tuple(frames.shape) == (2, 3, 3, size.pixels, size.pixels)
    world = world_model(f"maze:{name}")
    assert isinstance(world, MazeWorld)
    half = sum(each.numel() for each in (*world.module("meta").parameters(), *codec.parameters())) * 2
    assert half <= 60e6, "what is shipped of a size in half precision"


def test_latents_of_a_codec_in_training_have_unit_variance() -> None:
    codec = MazeCodec(SIZES["tiny"]().codec).train()
    latents = codec.encode(torch.rand(8, 3, 32, 32))
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(8), atol=0.05, rtol=0)


def test_the_maze_is_a_world_model_and_says_what_its_weights_are() -> None:
    assert set(family("maze").sizes) == set(SIZES)
    world = world_model("maze:tiny")
    assert "random weights" in str(world) or "trained weights" in str(world)
    if not world.is_trained:  # type: ignore[attr-defined]
        with pytest.warns(UserWarning, match="has no trained weights"):
            chunk = world.module(seed=1)
    else:
        chunk = world.module(seed=1)
    results = list(world.rollout(chunk, world.scene(seed=2), world.camera_path("w-7")))
    assert [tuple(each.latents.shape) for each in results] == [(1, 8, 4, 4, 4)] * 2
    assert bool(torch.isfinite(results[-1].history).all())


def test_a_size_that_is_not_there_is_told() -> None:
    made = CliRunner().invoke(app, ["train", "maze", "--config", "bse"])
    assert isinstance(made.exception, InputError) and "did you mean 'base'" in str(made.exception)
