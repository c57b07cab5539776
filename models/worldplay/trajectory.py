"""Camera trajectories: from a pose string, a file or recorded poses to what the model reads for every latent frame."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..camera_paths.pose_strings import held_keys, total
from ..camera_paths.poses import check_intrinsics, check_rigid, invert_rigid, relative_to_first
from .actions import action_labels

MOVE_SPEED = 0.08
"""Scene units a latent frame."""

TURN_SPEED = math.radians(3.0)
"""Radians a latent frame."""

DEFAULT_FOCAL = (969.697 / 1920.0, 969.697 / 1080.0)
"""Focal lengths over image width and height, of the camera the model was trained around."""

_MOVES = {"w": (0.0, 1.0), "s": (0.0, -1.0), "d": (1.0, 0.0), "a": (-1.0, 0.0)}
"""Command to (right, forward)."""

_TURNS = {"right": (1.0, 0.0), "left": (-1.0, 0.0), "up": (0.0, 1.0), "down": (0.0, -1.0)}
"""Command to (yaw, pitch); positive is right and up."""


@dataclass(frozen=True)
class Trajectory:
    """What the model reads of a camera path, one row a latent frame.

    `extrinsics` [frames, 4, 4] float32 world-to-camera, the first the identity; `intrinsics` [frames, 3, 3] float32
    with focal lengths over image width and height; `actions` [frames] float32 labels 0..80.
    """

    extrinsics: Tensor
    intrinsics: Tensor
    actions: Tensor

    def __len__(self) -> int:
        return self.extrinsics.shape[0]

    @classmethod
    def from_poses(cls, poses: Tensor, intrinsics: Tensor | None = None) -> Trajectory:
        """From camera-to-world poses [frames, 4, 4]; `intrinsics` is [3, 3] or [frames, 3, 3], normalised.

        Raises InputError for poses that are not finite rigid transforms, or focal lengths that are not positive.
        """
        check_rigid(poses, "poses")
        poses = relative_to_first(poses.double())
        matrices = default_intrinsics() if intrinsics is None else intrinsics
        matrices = matrices.expand(poses.shape[0], 3, 3).float()
        check_intrinsics(matrices, "intrinsics")
        return cls(invert_rigid(poses).float(), matrices, action_labels(poses))

    @classmethod
    def from_pose_string(cls, text: str, intrinsics: Tensor | None = None) -> Trajectory:
        """From a pose string such as `"w-31"`, `"left-31,right-32"` or `"w+left-15, s-16"`; see `parse_pose_string`."""
        return cls.from_poses(parse_pose_string(text), intrinsics)


def default_intrinsics() -> Tensor:
    """The training camera's normalised intrinsics [3, 3], principal point in the middle."""
    return torch.tensor([[DEFAULT_FOCAL[0], 0.0, 0.5], [0.0, DEFAULT_FOCAL[1], 0.5], [0.0, 0.0, 1.0]])


def parse_pose_string(text: str) -> Tensor:
    """Camera-to-world poses [frames, 4, 4], float64, of a pose string; the first is the identity.

    A string is segments `KEYS-COUNT` joined by commas; a segment holds its keys for COUNT latent frames, so the path
    has one frame more than the counts sum to. Keys: `w` `s` `a` `d` move forward, backward, left, right by 0.08; `left`
    `right` `up` `down` turn by 3 degrees; `+` joins keys (`w+left`). A frame first turns, then moves along its new
    heading.

    Raises:
        InputError: an unknown key, keys that cancel, a missing or zero count; it names the segment and its position.
    """
    pose = torch.eye(4, dtype=torch.float64)
    poses = [pose]
    for keys, count in held_keys(text, (_MOVES, _TURNS)):
        step = step_pose(total(keys, _MOVES), total(keys, _TURNS))
        for _ in range(count):
            pose = pose @ step
            poses.append(pose)
    return torch.stack(poses)


def step_pose(move: tuple[float, float], turn: tuple[float, float]) -> Tensor:
    """The pose [4, 4], float64, one latent frame on: (right, forward) times 0.08 after (yaw, pitch) times 3 degrees."""
    yaw, pitch = turn[0] * TURN_SPEED, turn[1] * TURN_SPEED
    cos_y, sin_y, cos_x, sin_x = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
    about_y = torch.tensor([[cos_y, 0.0, sin_y], [0.0, 1.0, 0.0], [-sin_y, 0.0, cos_y]], dtype=torch.float64)
    about_x = torch.tensor([[1.0, 0.0, 0.0], [0.0, cos_x, -sin_x], [0.0, sin_x, cos_x]], dtype=torch.float64)
    offset = torch.tensor([move[0] * MOVE_SPEED, 0.0, move[1] * MOVE_SPEED], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = about_y @ about_x
    pose[:3, 3] = pose[:3, :3] @ offset
    return pose
