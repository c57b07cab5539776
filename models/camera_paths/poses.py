"""Arithmetic of camera poses: checking, re-basing, resampling and scaling a recorded path."""

from __future__ import annotations

import torch
from torch import Tensor

from lightint_compile.errors import InputError

_STILL = 1e-9
"""Steps shorter than this are a camera that only turns; scaling such a path would only scale noise."""


def check_rigid(matrices: Tensor, name: str, tolerance: float = 1e-3) -> None:
    """Raise InputError unless every matrix [..., frames, 4, 4] is finite and rigid; the first bad frame is named.

    Rigid means an orthonormal rotation with determinant 1, up to `tolerance`, over a last row of 0, 0, 0, 1.
    """
    if matrices.ndim < 3 or tuple(matrices.shape[-2:]) != (4, 4) or matrices.numel() == 0:
        why = f"the shape is {tuple(matrices.shape)}"
        raise InputError("Poses are a non-empty stack of 4x4 matrices.", where=name, why=why)
    exact = matrices.double()
    _reject(~torch.isfinite(exact).all(dim=(-2, -1)), name, "has a value that is not finite")
    rotation = exact[..., :3, :3]
    identity = torch.eye(3, dtype=torch.float64, device=matrices.device)
    skew = (rotation @ rotation.transpose(-1, -2) - identity).abs().amax(dim=(-2, -1))
    _reject(skew > tolerance, name, "has a rotation that is not orthonormal")
    _reject(torch.linalg.det(rotation) < 0, name, "has a mirrored rotation (determinant -1)")
    last = exact[..., 3, :] - torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64, device=matrices.device)
    _reject(last.abs().amax(-1) > tolerance, name, "does not end in the row 0, 0, 0, 1")


def _reject(bad: Tensor, name: str, why: str) -> None:
    if bool(bad.any()):
        frame = int(bad.nonzero()[0, -1])
        fix = "give finite rigid transforms [R t; 0 0 0 1]"
        raise InputError("A pose is not a rigid transform.", where=f"{name}, frame {frame}", why=f"it {why}", fix=fix)


def invert_rigid(extrinsics: Tensor) -> Tensor:
    """Inverse [..., 4, 4] of rigid transforms, `[R^T, -R^T t]`: exact where a general inverse would lose digits."""
    rotation = extrinsics[..., :3, :3].transpose(-1, -2)
    translation = -(extrinsics[..., :3, :3] * extrinsics[..., :3, 3:]).sum(dim=-2)
    return torch.cat([torch.cat([rotation, translation[..., None]], dim=-1), extrinsics[..., 3:, :]], dim=-2)


def relative_to_first(poses: Tensor) -> Tensor:
    """Camera-to-world poses [frames, 4, 4] in the frame of the first, which becomes the identity exactly."""
    moved = invert_rigid(poses[:1]) @ poses
    moved[0] = torch.eye(4, dtype=poses.dtype, device=poses.device)
    return moved


def resample(poses: Tensor, times: Tensor, frames: int) -> Tensor:
    """`frames` poses [frames, 4, 4] evenly spaced in time: centres linear, rotations along the shortest arc.

    poses [n, 4, 4] camera-to-world, times [n] strictly increasing. Raises InputError for times that are not, or fewer
    than two frames.
    """
    if frames < 2 or poses.shape[0] < 2:
        why = f"{poses.shape[0]} poses to {frames} frames"
        raise InputError("Resampling needs two poses and two frames at least.", where="resample", why=why)
    late = (times[1:] <= times[:-1]).nonzero()
    if late.numel():
        why = f"time {int(late[0, 0]) + 1} is not after the one before"
        raise InputError("Times must increase.", where="times", why=why, fix="sort the poses and drop doubles")
    wanted = torch.linspace(float(times[0]), float(times[-1]), frames, dtype=torch.float64)
    above = torch.searchsorted(times.double(), wanted).clamp(1, poses.shape[0] - 1)
    start, end = times.double()[above - 1], times.double()[above]
    share = ((wanted - start) / (end - start)).clamp(0.0, 1.0)
    before, after = poses.double()[above - 1], poses.double()[above]
    result = torch.eye(4, dtype=torch.float64).repeat(frames, 1, 1)
    result[:, :3, :3] = _interpolate(before[:, :3, :3], after[:, :3, :3], share)
    result[:, :3, 3] = torch.lerp(before[:, :3, 3], after[:, :3, 3], share[:, None])
    return result


def _interpolate(before: Tensor, after: Tensor, share: Tensor) -> Tensor:
    """Rotations `before @ exp(share * log(before^T after))` [n, 3, 3], by axis and angle (Rodrigues)."""
    step = before.transpose(-1, -2) @ after
    skew = (step - step.transpose(-1, -2)) / 2.0
    axis = torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], dim=-1)
    sine, cosine = axis.norm(dim=-1), (step.diagonal(dim1=-2, dim2=-1).sum(-1) - 1.0) / 2.0
    angle = torch.atan2(sine, cosine)
    unit = skew / sine.clamp_min(1e-12)[:, None, None]
    part = (share * angle)[:, None, None]
    identity = torch.eye(3, dtype=before.dtype)
    return before @ (identity + part.sin() * unit + (1.0 - part.cos()) * (unit @ unit))


def scale_to_speed(poses: Tensor, step: float) -> Tensor:
    """Poses whose median translation between frames is `step` scene units; a path that only turns is left as it is.

    The median, not the mean: a tracker's jump must not shrink the rest of the walk.
    """
    distances = (poses[1:, :3, 3] - poses[:-1, :3, 3]).norm(dim=-1)
    median = float(distances.median())
    if median < _STILL:
        return poses
    scaled = poses.clone()
    scaled[:, :3, 3] *= step / median
    return scaled


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
