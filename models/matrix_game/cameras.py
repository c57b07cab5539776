"""Maps of camera rays, which is how the model sees cameras: each relative to another, translations made comparable.

The released code calls them Pluecker embeddings; they hold ray origins and directions, not moments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import VAE_STRIDE, MatrixGameConfig

_STILL = 1e-4
"""Longest translation, in scene units, of a camera that stands still: rounding must not be stretched to length 1."""


def relative(reference: Tensor, poses: Tensor) -> Tensor:
    """Camera-to-world poses [..., 4, 4] in the frame of reference poses that broadcast to them."""
    turned = reference[..., :3, :3].transpose(-1, -2)
    rotation = turned @ poses[..., :3, :3]
    translation = turned @ (poses[..., :3, 3:] - reference[..., :3, 3:])
    last = poses[..., 3:, :].expand(*rotation.shape[:-2], 1, 4)
    return torch.cat([torch.cat([rotation, translation], dim=-1), last], dim=-2)


def steps_of(poses: Tensor) -> Tensor:
    """Poses [B, T, 4, 4] of a clip, each in the frame of the one before and the first the identity.

    Translations are divided by the longest of the clip.
    """
    steps = relative(torch.cat([poses[:, :1], poses[:, :-1]], dim=1), poses)
    return _scaled(steps, steps[..., :3, 3].norm(dim=-1).amax(dim=1)[:, None])


def seen_from(reference: Tensor, poses: Tensor) -> Tensor:
    """Poses [B, M, 4, 4] of memory, each in the frame of its reference, with translations of length 1."""
    moved = relative(reference, poses)
    return _scaled(moved, moved[..., :3, 3].norm(dim=-1))


def _scaled(poses: Tensor, length: Tensor) -> Tensor:
    length = torch.where(length > _STILL, length, torch.ones_like(length))
    translation = poses[..., :3, 3:] / length[..., None, None]
    return torch.cat([torch.cat([poses[..., :3, :3], translation], dim=-1), poses[..., 3:, :]], dim=-2)


def ray_map(config: MatrixGameConfig, poses: Tensor) -> Tensor:
    """Rays of all pixels [B, 1536, T, h, w] of camera-to-world poses [B, T, 4, 4], field of view 90 by 90 degrees.

    Channels are (origin and direction, pixel row, pixel column) within a latent pixel.
    """
    height, width = config.pixels
    rows = (torch.arange(height, device=poses.device, dtype=poses.dtype) + 0.5) / (0.5 * height) - 1.0
    columns = (torch.arange(width, device=poses.device, dtype=poses.dtype) + 0.5) / (0.5 * width) - 1.0
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    ahead = torch.stack([x, y, torch.ones_like(x)], dim=-1)
    ahead = ahead / ahead.norm(dim=-1, keepdim=True)
    directions = ahead.flatten(0, 1) @ poses[..., :3, :3].transpose(-1, -2)
    origins = poses[..., None, :3, 3].expand_as(directions)
    rays = torch.cat([origins, directions], dim=-1).unflatten(2, (height, width))
    blocks = rays.unflatten(3, (-1, VAE_STRIDE)).unflatten(2, (-1, VAE_STRIDE))
    # [B, T, h, dy, w, dx, 6] -> [B, 6, dy, dx, T, h, w]
    return blocks.permute(0, 6, 3, 5, 1, 2, 4).flatten(1, 3)
