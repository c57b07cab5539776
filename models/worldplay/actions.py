"""Action labels: what the camera did between two latent frames, as one of 81 classes.

`label = 9 * translation + rotation`. Translation: 0 none, 1 forward, 2 backward, 3 right, 4 left, then forward-right,
forward-left, backward-right, backward-left. Rotation: 0 none, 1 right, 2 left, 3 up, 4 down, then right-up, right-down,
left-up, left-down. Coordinates are OpenCV's: x right, y down, z forward.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MOVE_THRESHOLD = 1e-4
"""Shortest movement, in scene units, that counts as one."""

TURN_THRESHOLD = 0.05
"""Smallest rotation, in degrees, that counts as one."""

_CONE = math.cos(math.radians(60.0))

# Indexed by [first axis + 1][second axis + 1], an axis being -1, 0 or 1.
# Translation is [backward, none, forward][left, none, right], rotation [left, none, right][down, none, up].
_CLASS = ((8, 2, 7), (4, 0, 3), (6, 1, 5))


def _sign(value: Tensor, threshold: float) -> Tensor:
    return (value > threshold).long() - (value < -threshold).long()


def _classes(first: Tensor, second: Tensor) -> Tensor:
    return torch.tensor(_CLASS, device=first.device)[first + 1, second + 1]


def _translation_classes(offset: Tensor) -> Tensor:
    distance = offset.norm(dim=-1)
    right, _, forward = (offset / distance.clamp_min(MOVE_THRESHOLD)[..., None]).unbind(-1)
    return torch.where(distance <= MOVE_THRESHOLD, 0, _classes(_sign(forward, _CONE), _sign(right, _CONE)))


def _rotation_classes(rotation: Tensor) -> Tensor:
    pitch = torch.rad2deg(torch.atan2(rotation[..., 2, 1], rotation[..., 2, 2]))
    yaw = torch.rad2deg(torch.asin((-rotation[..., 2, 0]).clamp(-1.0, 1.0)))
    return _classes(_sign(yaw, TURN_THRESHOLD), _sign(pitch, TURN_THRESHOLD))


def action_labels(poses: Tensor) -> Tensor:
    """Labels [..., frames], float32, of camera-to-world poses [..., frames, 4, 4]; the first frame has label 0.

    Frame i is labelled from `inv(pose[i-1]) @ pose[i]`: a direction counts within 60 degrees of its axis, a rotation
    from its Euler angles x (up, down) and y (right, left).
    """
    steps = torch.linalg.inv(poses[..., :-1, :, :].double()) @ poses[..., 1:, :, :].double()
    labels = 9 * _translation_classes(steps[..., :3, 3]) + _rotation_classes(steps[..., :3, :3])
    return F.pad(labels, (1, 0)).float()
