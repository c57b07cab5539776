"""Latents of walks to train on: rendered and encoded on the device, with the context that every chunk looks back at."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightint_compile.models.camera_paths.poses import invert_rigid
from lightint_compile.models.maze.codec import MazeCodec
from lightint_compile.models.maze.config import MazeSize
from lightint_compile.models.maze.paths import square_intrinsics
from lightint_compile.models.maze.render import render_frames
from lightint_compile.models.maze.world import Maze
from lightint_compile.models.worldplay.actions import action_labels
from lightint_compile.models.worldplay.context import ContextSelector
from lightint_compile.training.network import Cameras
from lightint_compile.training.walks import walks

MAZES_AT_ONCE = 64


class Sequences(NamedTuple):
    """Walks: `latents` [n, C, F, h, w] bfloat16, `cameras` [n, F], and `context` [n, chunks, memory] int16.

    Row k of `context` holds the frames that chunk k looks back at, in its first `min(k * chunk, memory)` places.
    """

    latents: Tensor
    cameras: Cameras
    context: Tensor

    def rows(self, index: Tensor) -> Sequences:
        """Some walks."""
        return Sequences(self.latents[index], Cameras(*(each[index] for each in self.cameras)), self.context[index])

    def put(self, first: int, other: Sequences) -> None:
        """Overwrite the walks from number `first` on, round and round."""
        index = (first + torch.arange(len(other.latents), device=self.latents.device)) % len(self.latents)
        self.latents[index] = other.latents
        self.context[index] = other.context
        for mine, theirs in zip(self.cameras, other.cameras, strict=True):
            mine[index] = theirs


def cameras_of(poses: Tensor, device: torch.device) -> Cameras:
    """What the model reads of camera-to-world poses [n, F, 4, 4] in their mazes: relative to the first, in float32."""
    relative = invert_rigid(poses[:, :1]) @ poses
    extrinsics = invert_rigid(relative).float()
    extrinsics[:, 0] = torch.eye(4, device=poses.device)
    intrinsics = square_intrinsics().to(device).expand(*poses.shape[:2], 3, 3).contiguous()
    return Cameras(extrinsics.to(device), intrinsics, action_labels(relative).to(device))


def view_frames(maze: Maze, poses: Tensor, pixels: int) -> Tensor:
    """Rendered frames [n, F, 3, pixels, pixels] of camera-to-world poses [n, F, 4, 4]."""
    return render_frames(maze, invert_rigid(poses), square_intrinsics(), pixels)


def context_table(selector: ContextSelector, extrinsics: Tensor) -> Tensor:
    """`Sequences.context` of cameras [n, F, 4, 4]: the model's own choice, walk by walk."""
    config, frames = selector.config, extrinsics.shape[1]
    chunks = frames // config.chunk_frames
    table = torch.zeros(len(extrinsics), chunks, config.memory, dtype=torch.int16, device=extrinsics.device)
    for chunk in range(1, chunks):
        first = chunk * config.chunk_frames
        cameras = extrinsics[:, None, : first + config.chunk_frames]
        chosen = torch.vmap(lambda each, first=first: selector(each, first), chunk_size=16)(cameras)
        table[:, chunk, : chosen.shape[1]] = chosen.to(torch.int16)
    return table


@torch.no_grad()
def make_sequences(
    size: MazeSize, codec: MazeCodec, selector: ContextSelector, seeds: Tensor, frames: int
) -> Sequences:
    """Walks of `frames` frames through the mazes of `seeds`."""
    device = seeds.device
    parts = []
    for some in seeds.split(MAZES_AT_ONCE):
        maze = Maze.from_seeds(some, device)
        poses = walks(maze, frames)
        cameras = cameras_of(poses, device)
        latents = torch.stack([codec.encode(each) for each in view_frames(maze, poses, size.pixels)])
        parts.append(
            (latents.transpose(1, 2).to(torch.bfloat16), *cameras, context_table(selector, cameras.extrinsics))
        )
    latents, extrinsics, intrinsics, actions, context = (torch.cat(each) for each in zip(*parts, strict=True))
    return Sequences(latents, Cameras(extrinsics, intrinsics, actions), context)
