"""Camera trajectories with the actions that make them: one row a video frame.

Actions move a camera by the rules of the released code, in the axes of its world: x forward, y right, z up. The mouse
turns by 15 degrees a unit, keys move along the mean of the headings before and after. A trajectory holds cameras in the
frame of the first, in OpenCV's axes: x right, y down, z forward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lightint_compile.errors import InputError

from ..camera_paths.pose_files import RecordedPath, read_pose_file
from ..camera_paths.pose_strings import held_keys, total
from ..camera_paths.poses import check_rigid, invert_rigid, relative_to_first, resample, scale_to_speed
from .sizes import FRAMES_PER_LATENT

MOVE_SPEED = 0.1235
"""Scene units a video frame along one direction; two at once share it."""

DIAGONAL_SPEED = 0.0873

TURN_SPEED = 15.0
"""Degrees a video frame for a mouse value of 1."""

HELD_MOUSE = 0.1
"""The mouse value of a turning key: 1.5 degrees a video frame."""

MOUSE_THRESHOLD = 0.02
"""Smaller mouse values do not turn."""

FOCAL = 0.5
"""Focal lengths over image width and height: a field of view of 90 degrees both ways."""

_MOVES = {"w": (1.0, 0.0), "s": (-1.0, 0.0), "d": (0.0, 1.0), "a": (0.0, -1.0)}
"""Command to (forward, right)."""

_TURNS = {"up": (1.0, 0.0), "down": (-1.0, 0.0), "right": (0.0, 1.0), "left": (0.0, -1.0)}
"""Command to mouse (up-down, left-right). The released code's `up` turns its camera down; so does this."""

_KEYS = ("w", "s", "a", "d")
_CONE = math.cos(math.radians(60.0))
_MOVED = 0.25

_AXES = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]], dtype=torch.float64)
"""Columns are the camera's right, down and forward in the world of the actions, which is left-handed."""


@dataclass(frozen=True)
class Trajectory:
    """What the model reads of a camera path, one row a video frame.

    `video_extrinsics` [V, 4, 4] float32 world-to-camera, the first the identity; `mouse` [V, 2] and `keyboard` [V, 6]
    float32. V is 1 and a multiple of 4: one frame of latent frame 0, four of every other. Row i of the actions leads
    from camera i to the next.
    """

    video_extrinsics: Tensor
    mouse: Tensor
    keyboard: Tensor

    def __post_init__(self) -> None:
        frames = self.video_extrinsics.shape[0]
        if frames % FRAMES_PER_LATENT != 1 or {self.mouse.shape[0], self.keyboard.shape[0]} != {frames}:
            why = f"{frames} cameras, {self.mouse.shape[0]} mouse values, {self.keyboard.shape[0]} rows of keys"
            fix = "give as many of each, one more than a multiple of 4"
            raise InputError("The trajectory is no whole number of latent frames.", where="frames", why=why, fix=fix)

    @property
    def extrinsics(self) -> Tensor:
        """Cameras of latent frames [F, 4, 4]: each is that of its last video frame."""
        return self.video_extrinsics[::FRAMES_PER_LATENT]

    @property
    def intrinsics(self) -> Tensor:
        """The same matrix for every latent frame [F, 3, 3], normalised."""
        matrix = torch.tensor([[FOCAL, 0.0, 0.5], [0.0, FOCAL, 0.5], [0.0, 0.0, 1.0]])
        return matrix.repeat(len(self), 1, 1)

    def __len__(self) -> int:
        return (self.video_extrinsics.shape[0] - 1) // FRAMES_PER_LATENT + 1

    @classmethod
    def from_actions(cls, mouse: Tensor, keyboard: Tensor) -> Trajectory:
        """From what is done in every video frame: mouse [V, 2] and keyboard [V, 6]."""
        poses = poses_of_actions(mouse, keyboard)
        return cls(invert_rigid(relative_to_first(poses)).float(), mouse.float(), keyboard.float())

    @classmethod
    def from_pose_string(cls, text: str) -> Trajectory:
        """From a pose string such as `"w-14"` or `"w+left-14,s-10"`: keys held for a number of latent frames each.

        Keys: `w` `s` `a` `d` move, `left` `right` `up` `down` turn by 6 degrees a latent frame. The path has one latent
        frame more than the counts sum to. Raises InputError for a text that cannot be read.
        """
        mouse, moves = held_actions(text)
        return cls.from_actions(mouse, F.pad(moves, (0, 2)))

    @classmethod
    def from_poses(cls, poses: Tensor) -> Trajectory:
        """From camera-to-world poses [V, 4, 4] of video frames, with the actions that come closest to them.

        Raises InputError for poses that are not finite rigid transforms.
        """
        check_rigid(poses, "poses")
        poses = relative_to_first(poses.double())
        mouse, keyboard = actions_of_poses(poses)
        return cls(invert_rigid(poses).float(), mouse, keyboard)


def load_trajectory(path: str | Path, frames: int, step: float | None = MOVE_SPEED) -> Trajectory:
    """A trajectory of `frames` latent frames from a `.json`, TUM or KITTI file of camera poses.

    Poses are resampled evenly in time; `step` scales the path to this median translation a video frame (None keeps its
    scale). Raises InputError for a file that cannot be read.
    """
    return recorded_trajectory(read_pose_file(path), frames, step)


def recorded_trajectory(recorded: RecordedPath, frames: int, step: float | None) -> Trajectory:
    """Resample and scale a recorded path as `load_trajectory` does."""
    poses = resample(recorded.poses, recorded.times, FRAMES_PER_LATENT * (frames - 1) + 1)
    return Trajectory.from_poses(poses if step is None else scale_to_speed(poses, step))


def held_actions(text: str) -> tuple[Tensor, Tensor]:
    """Mouse [V, 2] and the keys W, S, A, D [V, 4] of a pose string, float32, one row a video frame."""
    mouse, moves = [], []
    for keys, count in held_keys(text, (_MOVES, _TURNS)):
        turn = [HELD_MOUSE * value for value in total(keys, _TURNS)]
        mouse += [turn] * (FRAMES_PER_LATENT * count)
        moves += [[float(key in keys) for key in _KEYS]] * (FRAMES_PER_LATENT * count)
    return torch.tensor([*mouse, mouse[-1]]), torch.tensor([*moves, moves[-1]])


def poses_of_actions(mouse: Tensor, keyboard: Tensor) -> Tensor:
    """Camera-to-world poses [V, 4, 4], float64, in the left-handed world of the actions; the first at its origin."""
    place, pitch, yaw = torch.zeros(3, dtype=torch.float64), 0.0, 0.0
    poses = []
    for turn, keys in zip(mouse.tolist(), keyboard.tolist(), strict=True):
        poses.append(_pose(place, pitch, yaw))
        down, right = (TURN_SPEED * value if abs(value) >= MOUSE_THRESHOLD else 0.0 for value in turn)
        forward, sideways = _move(keys)
        heading = math.radians(yaw + right / 2)
        cosine, sine = math.cos(heading), math.sin(heading)
        ahead = [cosine * forward - sine * sideways, sine * forward + cosine * sideways, 0.0]
        place = place + torch.tensor(ahead, dtype=torch.float64)
        pitch, yaw = pitch + down, yaw + right
    return torch.stack(poses)


def _move(keys: list[float]) -> tuple[float, float]:
    """Scene units (forward, right) of a row of keys; opposite keys cancel."""
    ahead, back, left, right = (key > 0.5 for key in keys[:4])
    forward, sideways = int(ahead) - int(back), int(right) - int(left)
    speed = DIAGONAL_SPEED if forward and sideways else MOVE_SPEED
    return speed * forward, speed * sideways


def _pose(place: Tensor, pitch: float, yaw: float) -> Tensor:
    cos_y, sin_y = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
    cos_p, sin_p = math.cos(math.radians(pitch)), math.sin(math.radians(pitch))
    about_z = torch.tensor([[cos_y, -sin_y, 0.0], [sin_y, cos_y, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    about_y = torch.tensor([[cos_p, 0.0, sin_p], [0.0, 1.0, 0.0], [-sin_p, 0.0, cos_p]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = about_z @ about_y @ _AXES
    pose[:3, 3] = place
    return pose


def actions_of_poses(poses: Tensor) -> tuple[Tensor, Tensor]:
    """Mouse [V, 2] and keyboard [V, 6], float32, that come closest to camera-to-world poses [V, 4, 4].

    Turns are the angles between a camera's forward and the next one's; a key is down where the camera moves by a
    quarter of its speed at least, within 60 degrees of the key's direction. The last row repeats the one before.
    """
    relative = invert_rigid(poses[:-1]) @ poses[1:]
    right, down, ahead = relative[:, :3, 2].unbind(-1)
    turns = torch.stack([torch.atan2(down, torch.hypot(right, ahead)), torch.atan2(right, ahead)], dim=-1)
    mouse = torch.rad2deg(turns) / TURN_SPEED
    offset = relative[:, :3, 3]
    distance = offset.norm(dim=-1, keepdim=True)
    forward, sideways = (offset / distance.clamp_min(1e-12))[:, [2, 0]].unbind(-1)
    moved = distance[:, 0] >= _MOVED * MOVE_SPEED
    held = [value > _CONE for value in (forward, -forward, -sideways, sideways)]
    keys = torch.stack([moved & key for key in held], dim=-1)
    keyboard = torch.cat([keys, torch.zeros_like(keys[:, :2])], dim=-1)
    mouse, keyboard = (torch.cat([each, each[-1:]]).float() for each in (mouse, keyboard))
    return mouse, keyboard
