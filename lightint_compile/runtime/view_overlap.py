"""How much of what a camera sees another camera sees too.

Overlap is a share of volume: the part of the current camera's field of view, up to a radius, that lies in the
remembered camera's field of view as well. Three ways to the same number: a closed form when the cameras share a centre;
fixed low-discrepancy points inside the current field of view otherwise (1,024 of them are as exact as 50,000 random
points in the whole ball, of which 95 % fall outside); a grid, for models that define their overlap by one.

Points are looked at with NumPy: an operation over a few ten thousand of them costs half of what it does in PyTorch, and
never waits for other threads.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightint_compile.errors import OptionError
from lightint_compile.passes.ir.world_spec import PUBLISHED, PUBLISHED_FRAMES

_PLASTIC = 1.2207440846057596
"""The root of x^4 = x + 1: its powers step a three-dimensional sequence of even spread (Roberts, 2018)."""

_AT_ONCE = 24
"""Pairs of cameras handled together: their points stay in the processor's cache."""

_EDGE = 1e-5
"""Share of a bound within which a point lies on it."""

SAME_CENTRE = 1e-3
"""Camera centres nearer than this share of the radius are taken as one: the closed form is then exact to 1e-3."""


class View(ABC):
    """A field of view. Cameras are world-to-camera [..., 4, 4], float64, x right, y down, z forward."""

    @property
    @abstractmethod
    def points(self) -> Tensor:
        """Fixed points [P, 3] inside the field of view, in the camera's own frame."""

    @abstractmethod
    def covers(self, sight: Sight) -> Tensor:
        """Which of ``points`` of each current camera each remembered one sees: bool [Q, M, P]."""

    def closed_form(self, sight: Sight) -> Tensor | None:
        """The overlap [Q, M] without points, where the view has a form for all of these cameras; else ``None``."""
        return None

    def overlap(self, current: Tensor, remembered: Tensor) -> Tensor:
        """Overlap [Q, M] in [0, 1] of current [Q, 4, 4] with remembered cameras [M, 4, 4]."""
        return Sight.of(self, current, remembered).overlap


@dataclass(frozen=True)
class Sight:
    """What current cameras [Q, 4, 4] see of remembered ones [M, 4, 4]; points are looked at once, and only if asked.

    Attributes:
        pose: of the remembered cameras in the frames of the current ones, [Q, M, 4, 4].
    """

    view: View
    current: Tensor
    remembered: Tensor
    pose: Tensor

    @classmethod
    def of(cls, view: View, current: Tensor, remembered: Tensor) -> Sight:
        """The sight of these cameras."""
        return cls(view, current, remembered, relative_pose(current, remembered))

    def part(self, rows: slice, columns: slice = slice(None)) -> Sight:
        """The same of some current cameras and some remembered ones."""
        return Sight(self.view, self.current[rows], self.remembered[columns], self.pose[rows, columns])

    @cached_property
    def overlap(self) -> Tensor:
        """[Q, M] in [0, 1]."""
        return _share(self.covers) if self.closed_form is None else self.closed_form

    def overlap_from(self, column: int) -> Tensor:
        """The end of :attr:`overlap`, by its form, without looking at points of the cameras in front of ``column``."""
        if self.closed_form is None:
            return _share(self.part(slice(None), slice(column, None)).covers)
        return self.closed_form[:, column:]

    @cached_property
    def closed_form(self) -> Tensor | None:
        """See :meth:`View.closed_form`."""
        return self.view.closed_form(self)

    @cached_property
    def covers(self) -> Tensor:
        """See :meth:`View.covers`."""
        return self.view.covers(self)


@dataclass(frozen=True)
class AngularView(View):
    """A window of azimuth and elevation up to a radius, roll ignored: what HY-WorldPlay retrieves its memory by.

    Attributes:
        horizontal, vertical: full angles in degrees.
        radius: in scene units.
        count: points inside the window.
    """

    horizontal: float = PUBLISHED.fov[0]
    vertical: float = PUBLISHED.fov[1]
    radius: float = PUBLISHED.view_depth
    count: int = 1024

    def __post_init__(self) -> None:
        if not (0 < self.horizontal < 180 and 0 < self.vertical < 180 and self.radius > 0 and self.count > 0):
            why = f"{self.horizontal} by {self.vertical} degrees, radius {self.radius}, {self.count} points"
            raise OptionError(
                "There is no such field of view.", where="view", why=why, fix="angles from 0 to 180 degrees"
            )

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

    @cached_property
    def _single(self) -> NDArray[np.float32]:
        """The points as [3, P] in single precision: plenty for a test of sides."""
        return self._points.mT.float().contiguous().numpy()

    def covers(self, sight: Sight) -> Tensor:
        """See :meth:`View.covers`. Angles are compared by the sides of planes and cones; none is computed."""
        poses = sight.pose.flatten(0, 1).numpy()
        seen = np.zeros((len(poses), self.count), dtype=np.bool_)
        near = self._may_meet(poses).nonzero()[0]
        windows = self._windows(poses[near])[..., None]
        for first in range(0, len(near), _AT_ONCE):
            some = slice(first, first + _AT_ONCE)
            seen[near[some]] = self._seen(windows[:, some])
        return torch.from_numpy(seen).reshape(*sight.pose.shape[:2], self.count)

    def _may_meet(self, poses: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether the balls around two windows meet; most frames of a long walk are ruled out by that."""
        half_azimuth, half_elevation = self._half
        narrowest = math.cos(half_elevation) - (1 - math.cos(half_azimuth))  # cosine from the axis to a corner, at most
        away = self.radius / (2 * narrowest) if narrowest > math.sqrt(0.5) else 0.0
        between = poses[:, :3, 3] + away * poses[:, :3, 2] - (0.0, 0.0, away)
        meet: NDArray[np.bool_] = (between * between).sum(-1) <= (2 * (away or self.radius)) ** 2
        return meet

    def _windows(self, poses: NDArray[np.float64]) -> NDArray[np.float32]:
        """Windows [9, N] of cameras [N, 4, 4]: centres, turns in azimuth, cones of elevation."""
        x, y, z = poses[:, :3, 2].T
        yaw, pitch = np.arctan2(x, z), np.arctan2(y, np.hypot(x, z))
        sides = [np.clip(pitch + side * self._half[1], -math.pi / 2, math.pi / 2) for side in (1, -1)]
        cones = [part for angle in sides for part in (np.sin(angle) * np.abs(np.sin(angle)), np.cos(angle) ** 2)]
        return np.stack([*poses[:, :3, 3].T, np.sin(yaw), np.cos(yaw), *cones]).astype(np.float32)

    def _seen(self, windows: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which points lie in ``windows`` [9, N, 1]: bool [N, P].

        A point is below a cone when its height over its distance from the axis is below the cone's; both sides are
        squared with their signs, which keeps their order and needs no root.
        """
        sin_yaw, cos_yaw, sin_top, cos_top, sin_bottom, cos_bottom = windows[3:]
        x, y, z = self._single[:, None] - windows[:3]
        flat, height = x * x + z * z, y * np.abs(y)
        ahead, aside = x * sin_yaw + z * cos_yaw, x * cos_yaw - z * sin_yaw
        near = flat + np.abs(height) <= self.radius**2
        level = (height * cos_top < flat * sin_top) & (height * cos_bottom > flat * sin_bottom)
        seen: NDArray[np.bool_] = near & level & (np.abs(aside) < ahead * math.tan(self._half[0]))
        return seen

    def closed_form(self, sight: Sight) -> Tensor | None:
        """See :meth:`View.closed_form`; there is one when all cameras share a centre."""
        apart = torch.linalg.vector_norm(sight.pose[..., :3, 3], dim=-1)
        return None if bool((apart >= SAME_CENTRE * self.radius).any()) else self._turned(sight.pose)

    def _turned(self, pose: Tensor) -> Tensor:
        """Overlap of two windows about one centre: shared azimuth times shared sine of elevation."""
        yaw, pitch = _direction(pose[..., :3, 2])
        half_azimuth, half_elevation = self._half
        azimuth = (2 * half_azimuth - yaw.abs()).clamp_min(0) / (2 * half_azimuth)
        top = torch.minimum(pitch + half_elevation, torch.full_like(pitch, half_elevation)).sin()
        bottom = torch.maximum(pitch - half_elevation, torch.full_like(pitch, -half_elevation)).sin()
        return azimuth * (top - bottom).clamp_min(0) / (2 * math.sin(half_elevation))


@lru_cache(maxsize=16)
def angular_view(horizontal: float, vertical: float, radius: float) -> AngularView:
    """Kept, with its points: a rollout asks for the same one in every chunk."""
    return AngularView(horizontal, vertical, radius)


@dataclass(frozen=True)
class PinholeView(View):
    """A pinhole frustum sampled on a grid: what Matrix-Game-3 retrieves its memory by, with these defaults.

    Points on an edge of the image count as seen, those at the nearest and the farthest depth do not; cameras that look
    the same way have such points, and rounding moves none across.

    Attributes:
        horizontal, vertical: full angles in degrees.
        side: grid points along each axis of the frustum.
        near, far: depth range in scene units.
    """

    horizontal: float = PUBLISHED_FRAMES.fov[0]
    vertical: float = PUBLISHED_FRAMES.fov[1]
    side: int = 10
    near: float = 0.1
    far: float = PUBLISHED_FRAMES.view_depth

    @cached_property
    def _slopes(self) -> tuple[float, float]:
        """How far an edge of the image is from its middle, at depth 1."""
        return math.tan(math.radians(self.horizontal / 2)), math.tan(math.radians(self.vertical / 2))

    @cached_property
    def _points(self) -> Tensor:
        across = torch.linspace(-1, 1, self.side, dtype=torch.float64)
        depth = torch.linspace(self.near, self.far, self.side, dtype=torch.float64)
        x, y, z = torch.meshgrid(across, across, depth, indexing="ij")
        aside, upright = self._slopes
        return torch.stack([x * z * aside, y * z * upright, z], -1).reshape(-1, 3)

    @property
    def points(self) -> Tensor:
        """The grid."""
        return self._points

    def covers(self, sight: Sight) -> Tensor:
        """See :meth:`View.covers`."""
        pose = relative_pose(sight.remembered, sight.current).transpose(0, 1)  # the current frame, seen from the other
        seen = (pose[..., None, :3, :3] @ self.points[..., None]).squeeze(-1) + pose[..., None, :3, 3]
        x, y, z = seen.unbind(-1)
        aside, upright = (slope * z * (1 + _EDGE) for slope in self._slopes)
        within = (z > self.near * (1 + _EDGE)) & (z < self.far * (1 - _EDGE))
        return within & (x.abs() <= aside) & (y.abs() <= upright)


def _share(covers: Tensor) -> Tensor:
    """The mean over points of bool [Q, M, P]."""
    counts = covers.numpy().sum(-1, dtype=np.int32)
    return torch.from_numpy(counts).double() / covers.shape[-1]


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


def _direction(vector: Tensor) -> tuple[Tensor, Tensor]:
    x, y, z = vector.unbind(-1)
    return torch.atan2(x, z), torch.atan2(y, torch.hypot(x, z))
