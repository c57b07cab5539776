"""View overlap as HY-WorldPlay's release samples it: random points in the whole ball, one pair of cameras at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

RADIUS, HALF_AZIMUTH, HALF_ELEVATION = 8.0, math.radians(30), math.radians(17.5)


def ball(points: int = 50_000, seed: int = 0) -> Tensor:
    """Random points [points, 3] of even density in the ball that a camera sees a part of; drawn once a video."""
    draw = torch.Generator().manual_seed(seed)
    direction = torch.randn(points, 3, generator=draw, dtype=torch.float64)
    radius = RADIUS * torch.rand(points, 1, generator=draw, dtype=torch.float64) ** (1 / 3)
    return direction / direction.norm(dim=-1, keepdim=True) * radius


def sampled_overlap(points: Tensor, current: Tensor, remembered: Tensor) -> float:
    """Share of what ``current`` [4, 4] sees that ``remembered`` [4, 4] sees too."""
    pose = current @ torch.linalg.inv(remembered)
    from_there = points - pose[:3, 3]
    seen = _within(points, torch.eye(4, dtype=torch.float64))
    shared = seen & _within(from_there, pose) & (from_there.norm(dim=-1) <= RADIUS)
    return float(shared.sum() / seen.sum())


def _within(points: Tensor, pose: Tensor) -> Tensor:
    forward = pose[:3, 2]
    azimuth = torch.atan2(points[:, 0], points[:, 2]) - torch.atan2(forward[0], forward[2])
    flat = torch.hypot(points[:, 0], points[:, 2])
    elevation = torch.atan2(points[:, 1], flat) - torch.atan2(forward[1], torch.hypot(forward[0], forward[2]))
    wrapped = torch.remainder(azimuth + math.pi, 2 * math.pi) - math.pi
    return (wrapped.abs() < HALF_AZIMUTH) & (elevation.abs() < HALF_ELEVATION)
