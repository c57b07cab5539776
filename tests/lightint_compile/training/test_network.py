"""What is trained is what runs: the training's passes and rollouts against the model's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightint_compile.models.maze import MazeCodec
from lightint_compile.models.maze.config import MazeSize
from lightint_compile.models.maze.world_model import prompt
from lightint_compile.models.random_weights import fill_random
from lightint_compile.models.worldplay.chunk import WorldPlayChunk
from lightint_compile.models.worldplay.rollout import Scene
from lightint_compile.training.generation import chosen_frames, coming, generate, step_velocity
from lightint_compile.training.network import Network
from lightint_compile.training.objectives import _copies
from lightint_compile.training.sequences import Sequences, context_table, make_sequences

SIZE = MazeSize.tiny()
CONFIG = SIZE.transformer
FRAMES = 24


@pytest.fixture(scope="module")
def chunk() -> WorldPlayChunk:
    made = fill_random(WorldPlayChunk(CONFIG), 1).eval()
    assert isinstance(made, WorldPlayChunk)
    return made


@pytest.fixture(scope="module")
def walks(chunk: WorldPlayChunk) -> Sequences:
    codec = fill_random(MazeCodec(SIZE.codec), 2).eval()
    seeds = torch.tensor([2_000_000, 2_000_001])
    made = make_sequences(SIZE, codec, chunk.selector, seeds, FRAMES)
    noise = torch.randn(made.latents.shape, generator=torch.Generator().manual_seed(0))
    return Sequences(noise, made.cameras, made.context)


def _inputs(walks: Sequences, row: int, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(each[row : row + 1, :frames] for each in walks.cameras)  # type: ignore[return-value]


@pytest.mark.parametrize("number", [0, 1, 5])
def test_the_velocity_of_a_chunk_is_the_models(chunk: WorldPlayChunk, walks: Sequences, number: int) -> None:
    network = Network(chunk.transformer, SIZE)
    first, size, count = number * 4, CONFIG.chunk_frames, 2
    sigma = torch.tensor([1.0, 0.4])
    noisy = torch.randn(2 * count, 8, size, 4, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        text = network.text()
        chosen = chosen_frames(walks.context, number, size)
        given = coming(network, walks.latents, chosen, number, walks.cameras, walks.latents[:, :, 0], text)
        got = step_velocity(network, noisy, sigma.repeat(2), _copies(given, count), text)
        for row in range(2):
            extrinsics, intrinsics, actions = _inputs(walks, row, first + size)
            image, history = walks.latents[row : row + 1, :, 0], walks.latents[row : row + 1, :, :first]
            cache = chunk.transformer.text_cache(**prompt(SIZE, 1))
            context, selected = None, torch.arange(0)
            if first:
                selected = chunk.selector(extrinsics, first)
                context = chunk.transformer.prefill(
                    chunk._conditioned(history.index_select(2, selected), selected, image),
                    torch.full((1, len(selected)), CONFIG.context_timestep),
                    actions[:, selected],
                    extrinsics[:, selected],
                    intrinsics[:, selected],
                    cache,
                )
            for copy in range(count):
                latents = chunk._conditioned(noisy[row * count + copy][None], first + torch.arange(size), image)
                level = torch.full((1, size), 1000.0 * float(sigma[copy]))
                cameras = actions[:, -size:], extrinsics[:, -size:], intrinsics[:, -size:]
                expected = chunk.transformer(latents, level, *cameras, cache, context, len(selected))
                torch.testing.assert_close(got[row * count + copy], expected[0], rtol=1e-4, atol=1e-4)
                assert expected.abs().max() > 1e-2


def test_a_rollout_is_the_models(chunk: WorldPlayChunk, walks: Sequences) -> None:
    network = Network(chunk.transformer, SIZE)
    noise = torch.randn(2, 8, FRAMES, 4, 4, generator=torch.Generator().manual_seed(4))
    image = walks.latents[:, :, 0]
    got = generate(network, image, walks.cameras, walks.context, noise)
    for row in range(2):
        history = None
        for first in range(0, FRAMES, 4):
            scene = Scene(image[row : row + 1], **prompt(SIZE, 1))
            cameras = _inputs(walks, row, first + 4)
            with torch.no_grad():
                made = chunk(
                    noise[row : row + 1, :, first : first + 4], history, *cameras,
                    scene.image, scene.text, scene.glyphs, scene.vision,
                )  # fmt: skip
            history = made if history is None else torch.cat([history, made], dim=2)
        torch.testing.assert_close(got[row], history[0], rtol=1e-3, atol=1e-3)


def test_the_context_of_every_walk_is_the_selectors(chunk: WorldPlayChunk, walks: Sequences) -> None:
    table = context_table(chunk.selector, walks.cameras.extrinsics)
    assert torch.equal(table, walks.context)
    for row in range(2):
        for number in range(1, FRAMES // 4):
            cameras = walks.cameras.extrinsics[row : row + 1, : 4 * number + 4]
            assert chosen_frames(table, number, 4)[row].tolist() == chunk.selector(cameras, 4 * number).tolist()
