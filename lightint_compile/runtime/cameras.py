"""Cameras and intrinsics as they are given: brought to rigid transforms and a field of view, or refused."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightint_compile.errors import InputError
from lightint_compile.passes.ir.world_spec import PUBLISHED
from lightint_compile.runtime.device_to_host import to_host
from lightint_compile.runtime.view_overlap import AngularView, angular_view

log = logging.getLogger("lightint_compile.runtime")

TOLERANCE = 1e-3
"""How far a rotation times its transpose may be from one, in formats that are finer than that."""

ROUNDINGS = 4
"""The same in steps of the format: rounding a rotation costs one, making it in the same format a few."""

CLEAN = 1e-6
"""Below this a rotation is left as it is."""

LONGEST_FOCAL = 16.0
"""Focal lengths over the image size; more would be a field of view below 3.6 degrees, and is taken for pixels."""


def rigid(extrinsics: Tensor, where: str = "extrinsics", dtype: torch.dtype | None = None) -> Tensor:
    """Cameras [..., F, 4, 4] or [..., F, 3, 4] as rigid transforms [..., F, 4, 4], float64 on the CPU, a copy.

    A rotation that is off by the rounding of its format becomes the nearest rotation.

    Args:
        where: what the caller knows them as.
        dtype: the format they were rounded to, where ``extrinsics`` are no longer in it.

    Raises:
        InputError: they are no rigid transforms, to 1e-3 or four roundings of the format.
    """
    if extrinsics.dim() < 3 or tuple(extrinsics.shape[-2:]) not in ((4, 4), (3, 4)):
        why = f"the shape is {tuple(extrinsics.shape)}"
        raise InputError("Cameras are 4x4 matrices.", where=where, why=why, fix="give [F, 4, 4] or [F, 3, 4]")
    cameras = np.zeros((*extrinsics.shape[:-2], 4, 4))
    cameras[..., 3, 3] = 1
    cameras[..., : extrinsics.shape[-2], :] = to_host(extrinsics).numpy()
    allowed = _allowed(extrinsics.dtype if dtype is None else dtype)
    with np.errstate(all="ignore"):  # what is not finite is refused below
        off = _off(cameras[..., :3, :3])
        bottom = np.abs(cameras[..., 3, :] - (0, 0, 0, 1)).max(-1)
        good = np.isfinite(cameras).all((-2, -1)) & (off < allowed) & (bottom < TOLERANCE)
        good &= np.linalg.det(cameras[..., :3, :3]) > 0
    if not good.all():
        place = tuple(np.argwhere(~good)[0])
        fix = "give world-to-camera matrices: a rotation and a translation"
        why = f"the matrix of frame {place[-1]} {_fault(cameras[place])}"
        raise InputError("Cameras must be rigid world-to-camera transforms.", where=where, why=why, fix=fix)
    rough = off > CLEAN
    if rough.any():
        cameras[rough, :3, :3] = _nearest_rotation(cameras[rough, :3, :3])
    return torch.from_numpy(cameras)


def _allowed(dtype: torch.dtype) -> float:
    return max(TOLERANCE, ROUNDINGS * torch.finfo(dtype).eps) if dtype.is_floating_point else TOLERANCE


def _off(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far rotations [..., 3, 3] times their transposes are from one."""
    found: NDArray[np.float64] = np.abs(rotation @ rotation.swapaxes(-1, -2) - np.eye(3)).max((-2, -1))
    return found


def _nearest_rotation(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The orthogonal part of matrices [..., 3, 3] that are nearly rotations: three steps of Newton-Schulz."""
    for _ in range(3):
        matrix = 1.5 * matrix - 0.5 * matrix @ matrix.swapaxes(-1, -2) @ matrix
    return matrix


def _fault(matrix: NDArray[np.float64]) -> str:
    """What keeps one camera from being rigid."""
    if not np.isfinite(matrix).all():
        return "holds NaN or infinity"
    if np.abs(matrix[3] - (0, 0, 0, 1)).max() >= TOLERANCE:
        return f"has the bottom row {[round(float(value), 4) for value in matrix[3]]} instead of 0, 0, 0, 1"
    determinant = float(np.linalg.det(matrix[:3, :3]))
    if determinant < 0:
        return "holds a reflection"
    return f"holds a scale or a shear: its determinant is {determinant:.4g}"


def path_of(cameras: Any, where: str = "cameras") -> Tensor:
    """The one path [F, 4, 4] of a caller, float64 on the CPU, a copy of it.

    Args:
        cameras: world-to-camera [F, 4, 4] or [F, 3, 4], with or without an axis of one in front: a tensor on any device
            and of any floating dtype, an array, or lists.

    Raises:
        InputError: what is given is no such path.
    """
    found = _tensor(cameras, where, "Cameras")
    if found.dim() == 4 and found.shape[0] != 1:
        why = f"the shape is {tuple(found.shape)}: {found.shape[0]} paths"
        raise InputError("A rollout follows one path.", where=where, why=why, fix="begin a rollout for each of them")
    return rigid(found[0] if found.dim() == 4 else found, where)


def _tensor(value: Any, where: str, what: str) -> Tensor:
    """A tensor, an array or lists as a tensor of real numbers with entries."""
    fix = "give a tensor, an array or lists of numbers"
    try:
        found = _read(value)
        found = found if found.dtype.is_floating_point or found.dtype.is_complex else to_host(found)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        why = f"{type(value).__name__}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        raise InputError(f"{what} are numbers.", where=where, why=why, fix=fix) from error
    if found.dtype.is_complex or found.is_meta or not found.numel():
        kind = "complex" if found.dtype.is_complex else "on the meta device" if found.is_meta else "empty"
        raise InputError(
            f"{what} are numbers.", where=where, why=f"a tensor of {tuple(found.shape)} is {kind}", fix=fix
        )
    return found


def _read(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, Sequence) and any(isinstance(each, Tensor) for each in value):
        return torch.stack([torch.as_tensor(each).detach() for each in value])
    return torch.as_tensor(np.asarray(value, np.float64))


def view_of(intrinsics: Any, where: str = "intrinsics", depth: float = PUBLISHED.view_depth) -> AngularView:
    """The field of view of a camera; of several, of the first.

    Args:
        intrinsics: [..., 3, 3] or [..., 4] (focal lengths, then the principal point), over image width and height. In
            pixels, the image is taken to be twice the principal point, which is said in the log.
        depth: how far the camera sees, in the unit of its translation.

    Raises:
        InputError: they are no intrinsics, focal lengths are not positive, or they are in pixels of an image whose size
            nothing tells.
    """
    found = _tensor(intrinsics, where, "Intrinsics")
    shape = tuple(found.shape)
    if found.dim() > 1 and shape[-2:] == (3, 3):
        matrix = to_host(found.reshape(-1, 3, 3)[0])
        numbers = [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]]
    elif shape[-1:] == (4,):
        numbers = list(to_host(found.reshape(-1, 4)[0]))
    else:
        fix = "give [3, 3], [F, 3, 3], or focal lengths and principal point as four numbers"
        raise InputError("These are no intrinsics.", where=where, why=f"the shape is {shape}", fix=fix)
    horizontal, vertical, *centre = map(float, numbers)
    if not (all(math.isfinite(value) for value in numbers) and horizontal > 0 and vertical > 0):
        why = f"they are {[horizontal, vertical]}, around {centre}"
        raise InputError("Focal lengths must be positive.", where=where, why=why, fix="divide pixels by the image size")
    lengths = _over_the_image(horizontal, vertical, centre, where)
    across, down = (math.degrees(2 * math.atan(0.5 / length)) for length in lengths)
    return angular_view(across, down, depth)


def of_elements(intrinsics: Tensor) -> Tensor:
    """The intrinsics of the first frame of every element of a batch, or of all of it at once: [1 or B, ...]."""
    if tuple(intrinsics.shape[-2:]) == (3, 3):
        return intrinsics[:, 0] if intrinsics.dim() == 4 else intrinsics.reshape(-1, 3, 3)[:1]
    return intrinsics[:, 0] if intrinsics.dim() == 3 else intrinsics.reshape(-1, intrinsics.shape[-1])[:1]


def _over_the_image(horizontal: float, vertical: float, centre: Sequence[float], where: str) -> tuple[float, float]:
    """Focal lengths over image width and height."""
    if min(centre) > 1.5:
        width, height = 2 * centre[0], 2 * centre[1]
        log.info("%s are in pixels: taken over an image of %g by %g, twice the principal point", where, width, height)
        return horizontal / width, vertical / height
    if max(horizontal, vertical) <= LONGEST_FOCAL:
        return horizontal, vertical
    why = f"focal lengths of {horizontal:g} and {vertical:g} are in pixels, and no principal point tells the image size"
    fix = "divide them by image width and height"
    raise InputError("The field of view cannot be told.", where=where, why=why, fix=fix)
