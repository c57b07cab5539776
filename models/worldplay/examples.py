"""Inputs and weights of the right shapes, from a seed: for tests, measurements and first contact."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor, nn

from .config import WorldPlayConfig

DEFAULT_FOCAL = (0.5050505, 0.8978676)
"""Focal lengths over image width and height: 969.697 pixels at 1920x1080."""


def _orbit(frames: int, dtype: torch.dtype) -> Tensor:
    """World-to-camera matrices [frames, 4, 4] that walk forward 0.08 and turn right 3 degrees a latent frame."""
    angle = torch.deg2rad(torch.tensor(3.0, dtype=torch.float64))
    cos, sin = float(angle.cos()), float(angle.sin())
    turn = torch.tensor([[cos, 0, sin, 0], [0, 1, 0, 0], [-sin, 0, cos, 0], [0, 0, 0, 1]], dtype=torch.float64)
    walk = torch.eye(4, dtype=torch.float64)
    walk[2, 3] = 0.08
    pose, poses = torch.eye(4, dtype=torch.float64), []
    for _ in range(frames):
        poses.append(torch.linalg.inv(pose))
        pose = pose @ turn @ walk
    return torch.stack(poses).to(dtype)


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

    Cameras stay float32 (float64 where `dtype` is) even for half-precision latents. On the meta device the values are
    absent and only shapes are made. At 480p a typical prompt has `text_tokens=119`.
    """
    device = torch.device(device)
    generator = torch.Generator().manual_seed(seed)
    made = torch.device("meta") if device.type == "meta" else torch.device("cpu")

    def draw(*shape: int) -> Tensor:
        if made.type == "meta":
            return torch.empty(shape, device=made, dtype=dtype)
        return torch.randn(shape, generator=generator).to(device, dtype)

    size = (config.latent_height, config.latent_width)
    total = frames_of_history + config.chunk_frames
    cameras = torch.promote_types(dtype, torch.float32)
    intrinsics = torch.diag(torch.tensor([*DEFAULT_FOCAL, 1.0], dtype=cameras)).repeat(1, total, 1, 1)
    actions = torch.full((1, total), 10.0, dtype=cameras)
    actions[:, 0] = 0.0
    args = (
        draw(1, config.in_channels, config.chunk_frames, *size),
        draw(1, config.in_channels, frames_of_history, *size) if frames_of_history else None,
        _orbit(total, cameras)[None].to(device),
        intrinsics.to(device),
        actions.to(device),
        draw(1, config.in_channels, *size),
        draw(1, text_tokens, config.text_dim),
        draw(1, glyph_tokens, config.glyph_dim),
        draw(1, config.vision_tokens, config.vision_dim),
    )
    return args, {}


def fill_random(module: nn.Module, seed: int = 0, scale: float = 0.05) -> nn.Module:
    """Overwrite every parameter from a seed, norms around 1 and the rest around 0, and return the module.

    The released initialisation leaves the camera and action paths at zero, which would hide them from any comparison.
    Each tensor is drawn on its own device from the seed and its name, so the values do not depend on the order.
    """
    for name, parameter in module.named_parameters():
        if parameter.is_meta:
            continue
        generator = torch.Generator(parameter.device).manual_seed(seed + zlib.crc32(name.encode()))
        with torch.no_grad():
            parameter.normal_(0.0, scale, generator=generator)
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.add_(1.0)
    return module
