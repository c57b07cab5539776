"""Which remembered frames a chunk attends to: the first ones, the newest ones, and clips the camera sees again.

Everything is tensor arithmetic on the length of the history, so that one traced graph serves every chunk of a rollout.
View overlap counts fixed points instead of drawing random ones: the low-discrepancy points of Roberts' R3 sequence,
reproducible and closer to the true volume than as many random points.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..camera_paths.poses import invert_rigid
from ..dtypes import wide
from .config import WorldPlayConfig

RADIUS = 8.0
"""Distance, in scene units, up to which a camera is taken to see."""

HALF_AZIMUTH = math.radians(30.0)
HALF_ELEVATION = math.radians(17.5)

_PLASTIC = 1.2207440846057596
"""The root of x^4 = x + 1, which makes the R3 sequence the three-dimensional relative of the golden ratio."""


def ball_points(count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`count` points [count, 3] spread evenly in a ball of radius 8: radius 8 u^(1/3), cos(theta) = 1 - 2v."""
    index = torch.arange(1, count + 1, device=device, dtype=torch.float64)
    u, v, w = ((0.5 + index * _PLASTIC**-power) % 1.0 for power in (1, 2, 3))
    radius = RADIUS * u ** (1.0 / 3.0)
    height = 1.0 - 2.0 * v
    flat = (1.0 - height * height).clamp_min(0.0).sqrt()
    azimuth = 2.0 * math.pi * w
    return (radius[:, None] * torch.stack([flat * azimuth.cos(), flat * azimuth.sin(), height], dim=-1)).to(dtype)


def _wrapped_within(angle: Tensor, centre: Tensor, half: float) -> Tensor:
    difference = torch.remainder(angle - centre + math.pi, 2.0 * math.pi) - math.pi
    return difference.abs() < half


def _inside(points: Tensor, yaw: Tensor, pitch: Tensor) -> Tensor:
    x, y, z = points.unbind(-1)
    azimuth, elevation = torch.atan2(x, z), torch.atan2(y, torch.hypot(x, z))
    return _wrapped_within(azimuth, yaw, HALF_AZIMUTH) & _wrapped_within(elevation, pitch, HALF_ELEVATION)


def _smaller(size: int, bound: int) -> int:
    """The smaller of a size and a number, without tying a graph to either.

    To Dynamo a symbolic size is an ``int``, and it writes ``min`` down as ``sym_min``; that of torch 2.11 cannot trace
    ``sym_min`` of plain numbers itself. A trace without Dynamo holds a ``SymInt``, which is no ``int``.
    """
    return min(size, bound) if isinstance(size, int) else torch.sym_min(size, bound)


class ContextSelector(nn.Module):
    """Picks at most `memory` context frames for the chunk that follows a history."""

    points: Tensor

    def __init__(self, config: WorldPlayConfig) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        self.register_buffer("points", ball_points(config.fov_points, device, torch.float32), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ContextSelector:
        # Recomputed, not converted: half precision would move the points, and leaving the meta device would lose them.
        super()._apply(fn, recurse)
        self.points = ball_points(self.config.fov_points, self.points.device, wide(self.points.dtype))
        return self

    def overlap(self, current: Tensor, remembered: Tensor) -> Tensor:
        """Share of what each current camera sees that each remembered camera sees too, in [0, 1].

        current [B, Q, 4, 4] and remembered [B, M, 4, 4] are world-to-camera; the result is [B, Q, M]. Roll is ignored.
        """
        return self._shared(current, remembered) / self._visible().sum().clamp_min(1)

    def _visible(self) -> Tensor:
        straight = torch.zeros((), device=self.points.device, dtype=self.points.dtype)
        return _inside(self.points, straight, straight)

    def _shared(self, current: Tensor, remembered: Tensor) -> Tensor:
        """Number of points in both views [B, Q, M], a whole number in the dtype of the points."""
        dtype = self.points.dtype
        current, inverse = current.to(dtype), invert_rigid(remembered.to(dtype))
        # A product and a sum: the poses stay exact where float32 matmul is allowed to round to TF32.
        poses = (current[:, :, None, :, :, None] * inverse[:, None, :, None]).sum(dim=-2)
        forward, centre = poses[..., :3, 2], poses[..., :3, 3]
        yaw = torch.atan2(forward[..., 0], forward[..., 2])
        pitch = torch.atan2(forward[..., 1], torch.hypot(forward[..., 0], forward[..., 2]))
        relative = self.points - centre[..., None, :]
        near = relative.pow(2).sum(-1) <= RADIUS * RADIUS
        seen = _inside(relative, yaw[..., None], pitch[..., None]) & near
        return (seen & self._visible()).sum(-1).to(dtype)

    def forward(self, extrinsics: Tensor, history_frames: int) -> Tensor:
        """Sorted frame numbers [min(history_frames, memory)], int64.

        extrinsics [B, history_frames + chunk, 4, 4] world-to-camera, the current chunk last. Up to `memory` frames are
        all taken. Beyond, the `sink` first, the `recent` newest, and between them the clips with the largest mean
        overlap, the earliest of equals. A batch shares one selection, by its summed overlap. `history_frames` is a
        multiple of the chunk.
        """
        config = self.config
        count = _smaller(history_frames, config.memory)
        slot = torch.arange(count, device=extrinsics.device)
        newest = slot + (history_frames - count)
        if config.retrieved_clips == 0:
            return torch.where(slot < config.sink, slot, newest)
        retrieved = self._retrieve(extrinsics, history_frames)
        middle = retrieved[(slot - config.sink).clamp(0, retrieved.shape[0] - 1)]
        after = config.sink + retrieved.shape[0]
        return torch.where(slot < config.sink, slot, torch.where(slot < after, middle, newest))

    def _retrieve(self, extrinsics: Tensor, history_frames: int) -> Tensor:
        config, clip = self.config, self.config.chunk_frames
        wanted = config.retrieved_clips
        # At least one start more than wanted, and never a single one: a traced graph would be tied to that length.
        starts = torch.arange(config.sink, history_frames + clip * (wanted + 1), clip, device=extrinsics.device)
        scores = self._clip_scores(extrinsics, starts, history_frames)
        # A clip that reaches into the recent window scores below any overlap, the earlier the better: while the history
        # fits in memory the pick is then clips sink, sink + 4, ..., and the selection every frame.
        scores = torch.where(starts < history_frames - config.recent, scores, -starts.to(scores.dtype))
        best = torch.argsort(scores, descending=True, stable=True)[:wanted]
        chosen = starts[best].sort().values
        return (chosen[:, None] + torch.arange(clip, device=chosen.device)).flatten()

    def _clip_scores(self, extrinsics: Tensor, starts: Tensor, history_frames: int) -> Tensor:
        """Points that the chunk shares with each clip [starts]; whole numbers, so that equal clips tie exactly."""
        probes = torch.stack([starts, starts + self.config.chunk_frames // 2], dim=-1).clamp_max(history_frames - 1)
        current = extrinsics[:, -self.config.chunk_frames :]
        remembered = extrinsics.index_select(1, probes.flatten())
        return self._shared(current, remembered).sum(dim=(0, 1)).unflatten(0, (-1, 2)).sum(-1)
