"""Cameras for tests, as world-to-camera matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def camera(yaw: float, pitch: float = 0.0, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Tensor:
    """A camera turned right by ``yaw`` and down by ``pitch`` degrees: [4, 4] float64."""
    a, b = math.radians(yaw), math.radians(pitch)
    about_y = torch.tensor([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
    about_x = torch.tensor([[1, 0, 0], [0, math.cos(b), math.sin(b)], [0, -math.sin(b), math.cos(b)]])
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = (about_y @ about_x).double()
    pose[:3, 3] = torch.tensor(centre, dtype=torch.float64)
    return torch.linalg.inv(pose)
