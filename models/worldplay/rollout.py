"""The loop over chunks: the model's use as a person would write it, one result at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightint_compile.errors import InputError

from ..camera_paths.poses import check_intrinsics, check_rigid
from ..dynamic_frames import mark_frames_dynamic
from ..world_model import ChunkResult as ChunkResult
from .config import WorldPlayConfig
from .trajectory import Trajectory


@dataclass(frozen=True)
class Scene:
    """What stays the same over a rollout: `image` [1, C, h, w] and the padding-free text inputs of `WorldPlayChunk`."""

    image: Tensor
    text: Tensor
    glyphs: Tensor
    vision: Tensor


def check_trajectory(config: WorldPlayConfig, trajectory: Trajectory) -> None:
    """Raise InputError unless the cameras are finite, rigid and a whole number of chunks."""
    frames = len(trajectory)
    if frames % config.chunk_frames or frames == 0:
        why = f"it has {frames} latent frames, a chunk has {config.chunk_frames}"
        fix = 'a pose string has one frame more than its counts sum to, so "w-31" is 32'
        raise InputError("The trajectory is no whole number of chunks.", where="trajectory", why=why, fix=fix)
    check_rigid(trajectory.extrinsics, "trajectory.extrinsics")
    check_intrinsics(trajectory.intrinsics, "trajectory.intrinsics")


def video_noise(config: WorldPlayConfig, frames: int, seed: int, like: Tensor) -> Tensor:
    """Standard normal noise [1, C, frames, h, w] for a whole video, drawn on the CPU so that devices agree."""
    shape = (1, config.in_channels, frames, config.latent_height, config.latent_width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(like.device, like.dtype)


def rollout(
    chunk: Callable[..., Tensor],
    config: WorldPlayConfig,
    scene: Scene,
    trajectory: Trajectory,
    noise: Tensor | None = None,
    seed: int = 0,
) -> Iterator[ChunkResult]:
    """Generate chunk after chunk along a trajectory.

    `chunk` is a `WorldPlayChunk`, compiled or not. Device and dtype are those of `scene.image`; cameras stay float32 or
    wider. `noise` [1, C, frames, h, w] overrides the seed. The frame axes are marked dynamic, so a compiled chunk
    is captured once without history and once with. Raises InputError before the first chunk for a bad trajectory.
    """
    check_trajectory(config, trajectory)
    noise = video_noise(config, len(trajectory), seed, scene.image) if noise is None else noise
    cameras = [
        tensor[None].to(noise.device) for tensor in (trajectory.extrinsics, trajectory.intrinsics, trajectory.actions)
    ]
    return _chunks(chunk, config.chunk_frames, scene, cameras, noise)


def _chunks(
    chunk: Callable[..., Tensor], size: int, scene: Scene, cameras: list[Tensor], noise: Tensor
) -> Iterator[ChunkResult]:
    history: Tensor | None = None
    for index, first in enumerate(range(0, noise.shape[2], size)):
        until_now = [tensor[:, : first + size].contiguous() for tensor in cameras]
        mark_frames_dynamic(history, *until_now)
        with torch.no_grad():
            latents = chunk(
                noise[:, :, first : first + size].contiguous(),
                history,
                *until_now,
                scene.image,
                scene.text,
                scene.glyphs,
                scene.vision,
            )
        history = (
            latents.clone(memory_format=torch.contiguous_format)
            if history is None
            else torch.cat([history, latents], dim=2)
        )
        yield ChunkResult(index, latents, history)
