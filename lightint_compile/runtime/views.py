"""How much of what a camera sees another camera sees too.

Overlap is a share of volume: the part of the current camera's field of view, up to a radius, that lies in the
remembered camera's field of view as well. Three ways to the same number: a closed form when the cameras share a centre;
fixed low-discrepancy points inside the current field of view otherwise (1,024 of them are as exact as 50,000 random
points in the whole ball, of which 95 % fall outside); a grid, for models that define their overlap by one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightint_compile.errors import InputError

_PLASTIC = 1.2207440846057596
"""The root of x^4 = x + 1: its powers step a three-dimensional sequence of even spread (Roberts, 2018)."""

SAME_CENTRE = 1e-3
"""Camera centres nearer than this share of the radius are taken as one: the closed form is then exact to 1e-3."""


class View(ABC):
    """A field of view. Cameras are world-to-camera [..., 4, 4], float64, x right, y down, z forward."""

    @property
    @abstractmethod
    def points(self) -> Tensor:
        """Fixed points [P, 3] inside the field of view, in the camera's own frame."""

    @abstractmethod
    def covers(self, current: Tensor, remembered: Tensor) -> Tensor:
        """Which of ``points`` of each current camera [Q, 4, 4] each remembered one [M, 4, 4] sees: bool [Q, M, P]."""

    def overlap(self, current: Tensor, remembered: Tensor) -> Tensor:
        """Overlap [Q, M] in [0, 1] of current [Q, 4, 4] with remembered cameras [M, 4, 4]."""
        return self.covers(current, remembered).double().mean(-1)


@dataclass(frozen=True)
class AngularView(View):
    """A window of azimuth and elevation up to a radius, roll ignored: what HY-WorldPlay retrieves its memory by.

    Attributes:
        horizontal, vertical: full angles in degrees.
        radius: in scene units.
        count: points inside the window.
    """

    horizontal: float = 60.0
    vertical: float = 35.0
    radius: float = 8.0
    count: int = 1024

    @cached_property
    def _half(self) -> tuple[float, float]:
        return math.radians(self.horizontal / 2), math.radians(self.vertical / 2)

    @cached_property
    def _points(self) -> Tensor:
        index = torch.arange(1, self.count + 1, dtype=torch.float64)
        u, v, w = ((0.5 + index * _PLASTIC**-power) % 1.0 for power in (1, 2, 3))
        half_azimuth, half_elevation = self._half
        azimuth = (2 * u - 1) * half_azimuth
        sine = (2 * v - 1) * math.sin(half_elevation)
        cosine, distance = (1 - sine * sine).sqrt(), self.radius * w ** (1 / 3)
        return distance[:, None] * torch.stack([cosine * azimuth.sin(), sine, cosine * azimuth.cos()], -1)

    @property
    def points(self) -> Tensor:
        """Points spread evenly over the volume of the window."""
        return self._points

    def covers(self, current: Tensor, remembered: Tensor) -> Tensor:
        """See :meth:`View.covers`."""
        pose = relative_pose(current, remembered)
        yaw, pitch = _direction(pose[..., :3, 2])
        seen_from = self.points - pose[..., None, :3, 3]
        azimuth, elevation = _direction(seen_from)
        half_azimuth, half_elevation = self._half
        inside = _near(azimuth, yaw[..., None], half_azimuth) & _near(elevation, pitch[..., None], half_elevation)
        return inside & (seen_from.square().sum(-1) <= self.radius**2)

    def overlap(self, current: Tensor, remembered: Tensor) -> Tensor:
        """See :meth:`View.overlap`; exact for cameras that share a centre."""
        pose = relative_pose(current, remembered)
        turned = pose[..., :3, 3].norm(dim=-1) < SAME_CENTRE * self.radius
        if bool(turned.all()):
            return self._turned(pose)
        return torch.where(turned, self._turned(pose), super().overlap(current, remembered))

    def _turned(self, pose: Tensor) -> Tensor:
        """Overlap of two windows about one centre: shared azimuth times shared sine of elevation."""
        yaw, pitch = _direction(pose[..., :3, 2])
        half_azimuth, half_elevation = self._half
        azimuth = (2 * half_azimuth - yaw.abs()).clamp_min(0) / (2 * half_azimuth)
        top = torch.minimum(pitch + half_elevation, torch.full_like(pitch, half_elevation)).sin()
        bottom = torch.maximum(pitch - half_elevation, torch.full_like(pitch, -half_elevation)).sin()
        return azimuth * (top - bottom).clamp_min(0) / (2 * math.sin(half_elevation))


@dataclass(frozen=True)
class PinholeView(View):
    """A pinhole frustum sampled on a grid: what Matrix-Game-3 retrieves its memory by (90 degrees, depth 0.1 to 30).

    Attributes:
        side: grid points along each axis of the frustum.
        near, far: depth range in scene units.
    """

    side: int = 10
    near: float = 0.1
    far: float = 30.0

    @cached_property
    def _points(self) -> Tensor:
        across = torch.linspace(-1, 1, self.side, dtype=torch.float64)
        depth = torch.linspace(self.near, self.far, self.side, dtype=torch.float64)
        x, y, z = torch.meshgrid(across, across, depth, indexing="ij")
        return torch.stack([x * z, y * z, z], -1).reshape(-1, 3)

    @property
    def points(self) -> Tensor:
        """The grid, in tangent units: 90 degrees both ways."""
        return self._points

    def covers(self, current: Tensor, remembered: Tensor) -> Tensor:
        """See :meth:`View.covers`."""
        pose = relative_pose(remembered, current)  # the current camera's frame, seen from the remembered one
        pose = pose.transpose(0, 1)
        seen = (pose[..., None, :3, :3] @ self.points[..., None]).squeeze(-1) + pose[..., None, :3, 3]
        x, y, z = seen.unbind(-1)
        return (z > self.near) & (z < self.far) & (x.abs() <= z) & (y.abs() <= z)


def relative_pose(current: Tensor, remembered: Tensor) -> Tensor:
    """Poses [Q, M, 4, 4] of remembered cameras in the frames of current ones."""
    return current[:, None] @ inverse_rigid(remembered)[None]


def inverse_rigid(matrix: Tensor) -> Tensor:
    """The inverse of rigid transforms [..., 4, 4]."""
    rotation = matrix[..., :3, :3].mT
    result = torch.zeros_like(matrix)
    result[..., :3, :3] = rotation
    result[..., :3, 3] = -(rotation @ matrix[..., :3, 3:]).squeeze(-1)
    result[..., 3, 3] = 1
    return result


def check_cameras(extrinsics: Tensor, where: str = "extrinsics") -> None:
    """Raise :class:`InputError` unless ``extrinsics`` [..., F, 4, 4] are finite rigid transforms (to 1e-3)."""
    if extrinsics.shape[-2:] != (4, 4):
        raise InputError("Cameras are 4x4 matrices.", where=where, why=f"the shape is {tuple(extrinsics.shape)}")
    rotation = extrinsics[..., :3, :3].double()
    off = (rotation @ rotation.mT - torch.eye(3, dtype=torch.float64)).abs().amax((-2, -1))
    bottom = extrinsics[..., 3, :].double() - torch.tensor([0.0, 0, 0, 1], dtype=torch.float64)
    good = torch.isfinite(extrinsics).all(-1).all(-1) & (off < 1e-3) & (bottom.abs().amax(-1) < 1e-3)
    good &= torch.linalg.det(rotation.nan_to_num(0.0)) > 0
    if not bool(good.all()):
        frame = int((~good).nonzero()[0, -1])
        why = f"the matrix of frame {frame} has a row of NaN, a scale, a reflection or a bottom row other than 0 0 0 1"
        raise InputError(
            "Cameras must be rigid world-to-camera transforms.", where=where, why=why, fix="check the poses"
        )


def _direction(vector: Tensor) -> tuple[Tensor, Tensor]:
    x, y, z = vector.unbind(-1)
    return torch.atan2(x, z), torch.atan2(y, torch.hypot(x, z))


def _near(angle: Tensor, centre: Tensor, half: float) -> Tensor:
    difference = torch.remainder(angle - centre + math.pi, 2 * math.pi) - math.pi
    return difference.abs() < half
