"""Inputs of the right shapes, from a seed: for tests, measurements and first contact."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dtypes import wide
from ..random_weights import drawer
from .config import MatrixGameConfig
from .rollout import Scene
from .trajectory import Trajectory


def example_scene(
    config: MatrixGameConfig,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    text_tokens: int = 5,
) -> Scene:
    """A random first image and prompt. On meta, shapes alone."""
    draw = drawer(device, dtype, seed)
    image = draw(1, config.in_channels, 1, config.latent_height, config.latent_width)
    return Scene(image, draw(1, text_tokens, config.text_dim))


def example_inputs(
    config: MatrixGameConfig,
    frames_of_history: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    text_tokens: int = 5,
) -> dict[str, Tensor | None]:
    """Arguments of `MatrixGameClip.forward` by name, for a clip after `frames_of_history` latent frames.

    The camera walks forward and turns right. Cameras stay float32 (float64 where `dtype` is) even for half-precision
    latents. On the meta device the values are absent and only shapes are made.
    """
    draw = drawer(device, dtype, seed)
    size = (config.latent_height, config.latent_width)
    clip, new = (config.later_clip, config.new_frames) if frames_of_history else (config.first_clip, config.first_clip)
    noise = draw(1, config.in_channels, clip, *size)
    history = draw(1, config.in_channels, frames_of_history, *size) if frames_of_history else None
    walk = Trajectory.from_pose_string(f"w+right-{frames_of_history + new - 1}")
    rows = (walk.video_extrinsics, walk.mouse, walk.keyboard)
    placed = [tensor[None].to(device, wide(dtype)) for tensor in rows]
    scene = example_scene(config, device, dtype, seed + 1, text_tokens)
    names = ("noise", "history", "extrinsics", "mouse", "keyboard", "image", "text")
    return dict(zip(names, (noise, history, *placed, scene.image, scene.text), strict=True))
