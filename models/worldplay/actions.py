"""Action labels: what the camera did between two latent frames, as one of 81 classes.

`label = 9 * translation + rotation`. Translation: 0 none, 1 forward, 2 backward, 3 right, 4 left, then forward-right,
forward-left, backward-right, backward-left. Rotation: 0 none, 1 right, 2 left, 3 up, 4 down, then right-up, right-down,
left-up, left-down. Coordinates are OpenCV's: x right, y down, z forward.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MOVE_THRESHOLD = 1e-4
"""Shortest movement, in scene units, that counts as one."""

TURN_THRESHOLD = 0.05
"""Smallest rotation, in degrees, that counts as one."""

_CONE = math.cos(math.radians(60.0))

# Indexed by [first axis + 1][second axis + 1], an axis being -1, 0 or 1.
# Translation is [backward, none, forward][left, none, right], rotation [left, none, right][down, none, up].
_CLASS = ((8, 2, 7), (4, 0, 3), (6, 1, 5))


def _sign(value: float, threshold: float) -> int:
    return int(value > threshold) - int(value < -threshold)


def _translation_class(offset: Tensor) -> int:
    distance = float(offset.norm())
    if distance <= MOVE_THRESHOLD:
        return 0
    right, _, forward = (offset / distance).tolist()
    return _CLASS[_sign(forward, _CONE) + 1][_sign(right, _CONE) + 1]


def _rotation_class(rotation: Tensor) -> int:
    pitch = math.degrees(math.atan2(float(rotation[2, 1]), float(rotation[2, 2])))
    yaw = math.degrees(math.asin(max(-1.0, min(1.0, -float(rotation[2, 0])))))
    return _CLASS[_sign(yaw, TURN_THRESHOLD) + 1][_sign(pitch, TURN_THRESHOLD) + 1]


def action_labels(poses: Tensor) -> Tensor:
    """Labels [frames], float32, of camera-to-world poses [frames, 4, 4]; the first frame has label 0.

    Frame i is labelled from `inv(pose[i-1]) @ pose[i]`: a direction counts within 60 degrees of its axis, a rotation
    from its Euler angles x (up, down) and y (right, left).
    """
    relative = torch.linalg.inv(poses[:-1].double()) @ poses[1:].double()
    labels = [0]
    labels += [9 * _translation_class(step[:3, 3]) + _rotation_class(step[:3, :3]) for step in relative]
    return torch.tensor(labels, dtype=torch.float32)
