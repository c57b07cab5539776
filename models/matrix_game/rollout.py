"""The loop over clips: the model's use as a person would write it, one result at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightint_compile.errors import InputError

from ..camera_paths.poses import check_rigid
from ..dynamic_frames import mark_frames_dynamic
from ..world_model import ChunkResult
from .clip import video_frames
from .config import MatrixGameConfig
from .trajectory import Trajectory


@dataclass(frozen=True)
class Scene:
    """What stays the same over a rollout: `image` [1, C, 1, h, w] and `text` [1, n, text_dim]."""

    image: Tensor
    text: Tensor


def check_trajectory(config: MatrixGameConfig, trajectory: Trajectory) -> None:
    """Raise InputError unless the cameras are finite, rigid and a whole number of clips."""
    frames, first, new = len(trajectory), config.first_clip, config.new_frames
    if frames < first or (frames - first) % new:
        why = f"it has {frames} latent frames, the first clip has {first} and every other adds {new}"
        fix = f'a pose string has one frame more than its counts sum to, so "w-{first - 1}" is one clip'
        raise InputError("The trajectory is no whole number of clips.", where="trajectory", why=why, fix=fix)
    check_rigid(trajectory.video_extrinsics, "trajectory.video_extrinsics")


def clip_noise(config: MatrixGameConfig, frames: int, seed: int, like: Tensor) -> list[Tensor]:
    """Standard normal noise [1, C, F, h, w] for every clip of a video, drawn on the CPU so that devices agree."""
    generator, size = torch.Generator().manual_seed(seed), (config.latent_height, config.latent_width)
    lengths = [config.first_clip] + [config.later_clip] * ((frames - config.first_clip) // config.new_frames)
    drawn = [torch.randn(1, config.in_channels, length, *size, generator=generator) for length in lengths]
    return [noise.to(like.device, like.dtype) for noise in drawn]


def rollout(
    clip: Callable[..., Tensor], config: MatrixGameConfig, scene: Scene, trajectory: Trajectory, seed: int = 0
) -> Iterator[ChunkResult]:
    """Generate clip after clip along a trajectory.

    `clip` is a `MatrixGameClip`, compiled or not. Device and dtype are those of `scene.image`; cameras stay float32.
    The frame axes are marked dynamic, so a compiled clip is captured once without history and once with. Raises
    InputError before the first clip for a bad trajectory.
    """
    check_trajectory(config, trajectory)
    noise = clip_noise(config, len(trajectory), seed, scene.image)
    rows = (trajectory.video_extrinsics, trajectory.mouse, trajectory.keyboard)
    return _clips(clip, config, scene, [each[None].to(scene.image.device) for each in rows], noise)


def _clips(
    clip: Callable[..., Tensor], config: MatrixGameConfig, scene: Scene, rows: list[Tensor], noise: list[Tensor]
) -> Iterator[ChunkResult]:
    history: Tensor | None = None
    for index, drawn in enumerate(noise):
        end = video_frames(config.latent_frames(index + 1), True)
        until_now = [each[:, :end].contiguous() for each in rows]
        mark_frames_dynamic(history, *until_now)
        with torch.no_grad():
            latents = clip(drawn, history, *until_now, scene.image, scene.text)
        history = latents.contiguous() if history is None else torch.cat([history, latents], dim=2)
        yield ChunkResult(index, latents, history)
