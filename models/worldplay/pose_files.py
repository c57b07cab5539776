"""Trajectories from recorded camera paths."""

from __future__ import annotations

from pathlib import Path

from lightint_compile.errors import InputError

from ..camera_paths.pose_files import RecordedPath, read_pose_file
from ..camera_paths.poses import resample, scale_to_speed
from .trajectory import MOVE_SPEED, Trajectory


def load_trajectory(path: str | Path, frames: int | None = None, step: float | None = MOVE_SPEED) -> Trajectory:
    """A trajectory from a file: `.json`, a TUM file (8 numbers a line) or a KITTI file (12 numbers a line).

    `frames` resamples evenly in time to that many latent frames (None keeps one a pose); `step` scales the path to this
    median translation a latent frame (None keeps its scale). Raises InputError for a file that cannot be read.
    """
    return recorded_trajectory(read_pose_file(path), frames, step)


def recorded_trajectory(recorded: RecordedPath, frames: int | None, step: float | None) -> Trajectory:
    """Resample and scale a recorded path as `load_trajectory` does; per-frame intrinsics need `frames=None`."""
    poses, intrinsics = recorded.poses, recorded.intrinsics
    if frames is not None and frames != poses.shape[0]:
        if intrinsics is not None and intrinsics.ndim == 3:
            why = f"{poses.shape[0]} poses with their own intrinsics to {frames} frames"
            raise InputError("Intrinsics cannot be resampled.", where="frames", why=why, fix="give one 3x3 matrix")
        poses = resample(poses, recorded.times, frames)
    if step is not None and poses.shape[0] > 1:
        poses = scale_to_speed(poses, step)
    return Trajectory.from_poses(poses, intrinsics)
