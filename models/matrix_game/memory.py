"""Which latent frames of the past a clip remembers: for some frames of the clip, the one that saw most of the same.

Everything is tensor arithmetic, so that one traced graph serves every clip of a rollout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..camera_paths.poses import invert_rigid
from ..dtypes import wide
from .cameras import relative
from .config import MatrixGameConfig
from .sizes import FRAMES_PER_LATENT

NEAR, FAR = 0.1, 30.0
"""Depths, in scene units, between which a camera is taken to see."""

HALF_ANGLE = 45.0
"""Half of the field of view, horizontally and vertically, in degrees."""

REFERENCE_STEP = 8
"""Video frames between the frames of a clip that ask for memory, counted back from its last."""

FIXED = 1
"""The latent frame that is always remembered, in place of what the last reference asks for."""

_SIDE = 10
_EDGE = 1e-5


def frustum(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Points [1000, 3] in front of a camera: a grid over the image at evenly spaced depths."""
    side = torch.linspace(-1.0, 1.0, _SIDE, device=device, dtype=dtype)
    depth = torch.linspace(NEAR, FAR, _SIDE, device=device, dtype=dtype)
    x, y, z = torch.meshgrid(side, side, depth, indexing="ij")
    return torch.stack([x * z, y * z, z], dim=-1).flatten(0, 2)


def shared_points(reference: Tensor, candidates: Tensor) -> Tensor:
    """How many of the 1000 points in front of each reference each candidate sees too: [B, R, N], whole numbers.

    Poses [B, R, 4, 4] and [B, N, 4, 4] are camera-to-world. Points on an edge of the image count as seen, those at the
    nearest and the farthest depth do not; rounding moves no point across either.
    """
    moved = relative(candidates[:, None], reference[:, :, None])
    points = frustum(reference.device, reference.dtype)
    seen = (moved[..., None, :3, :3] * points[:, None, :]).sum(-1) + moved[..., None, :3, 3]
    x, y, z = seen.unbind(-1)
    bound = z * (1.0 + _EDGE)
    inside = (x.abs() <= bound) & (y.abs() <= bound)
    return (inside & (z > NEAR * (1.0 + _EDGE)) & (z < FAR * (1.0 - _EDGE))).sum(-1)


def reference_poses(config: MatrixGameConfig, poses: Tensor) -> Tensor:
    """Poses [B, M, 4, 4] of the frames that ask for memory, the last of the clip first."""
    span = REFERENCE_STEP * (config.memory - 1) + 1
    return poses[:, -span::REFERENCE_STEP].flip(1)


def asked_overlaps(config: MatrixGameConfig, poses: Tensor) -> tuple[Tensor, Tensor]:
    """For every reference the best earlier video frame [M], and the share [M] of its view that both see.

    poses [B, V, 4, 4] are camera-to-world of all video frames up to the end of the clip. The earliest of equal frames
    wins; a batch shares one choice, by its sum.
    """
    clip = FRAMES_PER_LATENT * config.later_clip
    shared = shared_points(reference_poses(config, poses), poses[:, 1:-clip]).sum(0)
    count = shared.shape[1]
    best = (shared * count - torch.arange(count, device=poses.device)).argmax(dim=1)
    return best + 1, shared.gather(1, best[:, None])[:, 0] / (_SIDE**3 * poses.shape[0])


def remembered(config: MatrixGameConfig, poses: Tensor) -> Tensor:
    """Latent frames [M] that the clip remembers, in the order of its references; one may be there twice."""
    frames, _ = asked_overlaps(config, poses)
    latents = (frames - 1) // FRAMES_PER_LATENT + 1
    return torch.cat([latents[:-1], latents.new_full((1,), FIXED)])


def camera_poses(extrinsics: Tensor) -> Tensor:
    """Camera-to-world [..., 4, 4] of world-to-camera, in float32 or wider."""
    return invert_rigid(extrinsics.to(wide(extrinsics.dtype)))
