"""The first phase: the codec learns to give frames back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightint_compile.models.maze.codec import MazeCodec
from lightint_compile.models.maze.hashing import draw
from lightint_compile.models.maze.world import Maze
from lightint_compile.training.sequences import MAZES_AT_ONCE, view_frames
from lightint_compile.training.walks import TRAINING_SEEDS, walks

NOISE = 0.1
"""Deviation of the noise that latents of variance 1 get, so that the decoder bears the model's small errors."""

Draw = Callable[[int, torch.Generator], Tensor]
"""So many frames [n, 3, H, W] in [0, 1]."""


@torch.no_grad()
def frame_pool(pixels: int, seed: int, rank: int, mazes: int, frames: int, device: torch.device) -> Draw:
    """What draws frames of walks through `mazes` mazes, `frames` of each, rendered once and kept in 8 bit."""
    keys = draw(torch.tensor(seed), rank, 1 << 30, torch.arange(mazes))
    kept = []
    for some in (TRAINING_SEEDS + keys % (2**31 - TRAINING_SEEDS)).split(MAZES_AT_ONCE):
        maze = Maze.from_seeds(some, device)
        views = view_frames(maze, walks(maze, frames), pixels)
        kept.append((views.flatten(0, 1) * 255.0).round().to(torch.uint8))
    pool = torch.cat(kept)

    def drawn(count: int, generator: torch.Generator) -> Tensor:
        return pool[torch.randint(0, len(pool), (count,), generator=generator, device=device)].float() / 255.0

    return drawn


def codec_loss(codec: MazeCodec, frames: Tensor, generator: torch.Generator) -> Tensor:
    """Mean absolute error of the pixels and of their differences to the right and downwards."""
    latents = codec.encode(frames)
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    made = codec.decode(latents + NOISE * noise).float()
    error = made - frames
    right, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    return error.abs().mean() + 0.5 * (right.abs().mean() + down.abs().mean())
