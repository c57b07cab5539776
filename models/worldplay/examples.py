"""Inputs of the right shapes, from a seed: for tests, measurements and first contact."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dtypes import wide
from ..random_weights import drawer
from .config import WorldPlayConfig
from .rollout import Scene
from .trajectory import Trajectory


def example_scene(
    config: WorldPlayConfig,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    text_tokens: int = 12,
    glyph_tokens: int = 2,
) -> Scene:
    """A random first image and prompt; at 480p a typical prompt has `text_tokens=119`. On meta, shapes alone."""
    draw = drawer(device, dtype, seed)
    return Scene(
        image=draw(1, config.in_channels, config.latent_height, config.latent_width),
        text=draw(1, text_tokens, config.text_dim),
        glyphs=draw(1, glyph_tokens, config.glyph_dim),
        vision=draw(1, config.vision_tokens, config.vision_dim),
    )


def example_inputs(
    config: WorldPlayConfig,
    frames_of_history: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    text_tokens: int = 12,
    glyph_tokens: int = 2,
) -> tuple[tuple[Tensor | None, ...], dict[str, Any]]:
    """Positional and keyword arguments of `WorldPlayChunk.forward` for a chunk after `frames_of_history` frames.

    The camera walks forward and turns right. Cameras stay float32 (float64 where `dtype` is) even for half-precision
    latents. On the meta device the values are absent and only shapes are made.
    """
    draw = drawer(device, dtype, seed)
    size = (config.latent_height, config.latent_width)
    noise = draw(1, config.in_channels, config.chunk_frames, *size)
    history = draw(1, config.in_channels, frames_of_history, *size) if frames_of_history else None
    walk = Trajectory.from_pose_string(f"w+right-{frames_of_history + config.chunk_frames - 1}")
    cameras = (walk.extrinsics, walk.intrinsics, walk.actions)
    placed = [tensor[None].to(device, wide(dtype)) for tensor in cameras]
    scene = example_scene(config, device, dtype, seed + 1, text_tokens, glyph_tokens)
    return (noise, history, *placed, scene.image, scene.text, scene.glyphs, scene.vision), {}
