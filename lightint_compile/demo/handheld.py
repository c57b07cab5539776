"""A hand-held camera path, generated from a seed: a person walks, looks around, and the camera sways with every step.

Not a recording. Rates are those of people: 1.9 steps a second, a bob of 2 to 3 cm, a tremor of about a degree that
wanders over half a second (an Ornstein-Uhlenbeck process), and a look to either side every few seconds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightint_compile.models.world_model import CameraPath, WorldModel

RATE = 30.0
"""Poses a second, as a phone's tracker gives."""

LATENT_RATE = 6.0
"""Latent frames a second: 24 video frames a second, four to a latent frame."""

_WALK = 1.3
_STEPS = 1.9
_TREMOR = math.radians(1.0)
_TREMOR_SECONDS = 0.5


def handheld_path(model: WorldModel, frames: int, seed: int = 0) -> CameraPath:
    """A path of ``frames`` latent frames, resampled and scaled to the model's speed like a recorded one."""
    poses, times = handheld_poses(max(2, math.ceil(frames / LATENT_RATE * RATE)), seed)
    return model.recorded_path(poses, times, frames)


def handheld_poses(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Camera-to-world poses [count, 4, 4] in metres and their times [count] in seconds, float64; x right, z forward."""
    times = torch.arange(count, dtype=torch.float64) / RATE
    tremor = _wandering(count, seed)
    stride = 2 * math.pi * _STEPS * times
    yaw = math.radians(25) * torch.sin(2 * math.pi * times / 4.0) + tremor[0]
    pitch = math.radians(3) * torch.sin(2 * math.pi * times / 2.7) + tremor[1]
    roll = math.radians(0.5) * torch.sin(stride / 2) + tremor[2] / 2
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    poses[:, :3, :3] = _about(yaw, 0, 2) @ _about(pitch, 2, 1) @ _about(roll, 1, 0)
    poses[:, :3, 3] = _walked(yaw - tremor[0], stride)
    return poses, times


def _wandering(count: int, seed: int) -> Tensor:
    """Three angles [3, count] in radians that wander around zero."""
    noise = torch.randn(3, count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    keep = math.exp(-1.0 / (RATE * _TREMOR_SECONDS))
    values = [noise[:, 0]]
    for index in range(1, count):
        values.append(keep * values[-1] + math.sqrt(1 - keep * keep) * noise[:, index])
    return _TREMOR * torch.stack(values, dim=-1)


def _about(angle: Tensor, first: int, second: int) -> Tensor:
    """Rotations [count, 3, 3] that turn axis ``second`` towards axis ``first``."""
    matrices = torch.eye(3, dtype=torch.float64).repeat(angle.shape[0], 1, 1)
    matrices[:, first, first] = matrices[:, second, second] = angle.cos()
    matrices[:, first, second], matrices[:, second, first] = angle.sin(), -angle.sin()
    return matrices


def _walked(heading: Tensor, stride: Tensor) -> Tensor:
    """Centres [count, 3]: forward, drifting half as far as one looks; up and down and sideways with the steps."""
    ahead = torch.stack([(heading / 2).sin(), torch.zeros_like(heading), (heading / 2).cos()], dim=-1)
    centres = torch.cumsum(ahead * _WALK / RATE, dim=0)
    centres[:, 0] += 0.02 * torch.sin(stride / 2)
    centres[:, 1] += 0.025 * torch.sin(stride)
    return centres
