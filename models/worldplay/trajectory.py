"""Camera trajectories: from a pose string, a file or recorded poses to what the model reads for every latent frame."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from lightint_compile.errors import InputError, did_you_mean

from .actions import action_labels
from .camera import invert_rigid
from .poses import check_rigid, relative_to_first

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

_SEGMENT = re.compile(r"(?P<keys>[a-z]+(?:\+[a-z]+)*)-(?P<count>[0-9]+)", re.ASCII)


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


def normalise_intrinsics(pixels: Tensor) -> Tensor:
    """Intrinsics in pixels [..., 3, 3] over the image size, taken as twice the principal point."""
    size = torch.stack([2.0 * pixels[..., 0, 2], 2.0 * pixels[..., 1, 2], torch.ones_like(pixels[..., 0, 0])], dim=-1)
    return pixels / size[..., :, None]


def check_intrinsics(intrinsics: Tensor, name: str) -> None:
    """Raise InputError unless focal lengths of [..., frames, 3, 3] are finite and positive."""
    focal = torch.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], dim=-1)
    bad = ~(torch.isfinite(focal) & (focal > 0)).all(-1)
    if bool(bad.any()):
        frame = int(bad.nonzero()[0, -1])
        why = f"focal lengths of frame {frame} are {focal[bad][0].tolist()}"
        raise InputError("Intrinsics need positive focal lengths.", where=name, why=why, fix="check the calibration")


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
    poses, position = [pose], 0
    for segment in text.split(","):
        step, count = _parse_segment(segment, position)
        for _ in range(count):
            pose = pose @ step
            poses.append(pose)
        position += len(segment) + 1
    return torch.stack(poses)


def _parse_segment(segment: str, position: int) -> tuple[Tensor, int]:
    match = _SEGMENT.fullmatch(segment.strip())
    if match is None:
        raise _segment_error(segment, position, "it is not KEYS-COUNT", 'write for example "w-31" or "w+left-8"')
    count = int(match["count"])
    if count == 0:
        raise _segment_error(segment, position, "its count is 0", "give at least one latent frame")
    keys = match["keys"].split("+")
    for key in keys:
        if key not in _MOVES and key not in _TURNS:
            hint = did_you_mean(key, [*_MOVES, *_TURNS])
            raise _segment_error(segment, position, f"the key {key!r} is unknown", hint)
    move, turn = _total(keys, _MOVES), _total(keys, _TURNS)
    if len(set(keys)) != len(keys) or any(abs(value) > 1 for value in (*move, *turn)):
        raise _segment_error(segment, position, "a key is repeated", "name each key once")
    if not any((*move, *turn)):
        raise _segment_error(segment, position, "its keys cancel", "leave opposite keys out")
    return step_pose(move, turn), count


def _total(keys: list[str], table: dict[str, tuple[float, float]]) -> tuple[float, float]:
    chosen = [table[key] for key in keys if key in table]
    return sum(first for first, _ in chosen), sum(second for _, second in chosen)


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


def _segment_error(segment: str, position: int, why: str, fix: str) -> InputError:
    where = f"pose string, position {position}: {segment!r}"
    return InputError("The pose string has a bad segment.", where=where, why=why, fix=fix)
