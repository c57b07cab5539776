"""The path of a camera, put together from the views of one chunk after another."""

from __future__ import annotations

import torch
from torch import Tensor

SLACK = 2.0
"""How much further than the longest step inside of two chunks the step between them may be."""


def continued(path: Tensor | None, chunk: Tensor, dtype: torch.dtype) -> Tensor:
    """``path`` and the views of a chunk behind it, [B, F, 4, 4]; the chunk alone where it does not continue the path.

    The last chunk once more, as after an exception, leaves the path as it is.

    A chunk continues the path whose last view its first one is near: two steps as long as the longest of its own, or of
    the chunk before. Poses that begin at the origin in every chunk do not, unless the camera stands still. Nor does a
    chunk that begins exactly where the path did, as a new rollout along the same path would.

    Args:
        dtype: the format the views were rounded to.
    """
    if path is None or path.shape[0] != chunk.shape[0]:
        return chunk
    frames = chunk.shape[1]
    if torch.equal(path[:, -frames:], chunk):
        return path
    if torch.equal(path[:, 0], chunk[:, 0]):
        return chunk
    moved = _steps(torch.cat([path[:, -frames:], chunk], 1))
    inside = torch.cat([moved[:, : frames - 1], moved[:, frames:]], 1)
    if not inside.shape[1]:
        return chunk
    slack = max(1e-3, 4 * torch.finfo(dtype).eps if dtype.is_floating_point else 0.0)
    near = moved[:, frames - 1] <= SLACK * inside.amax(1) + slack
    return torch.cat([path, chunk], 1) if bool(near.all()) else chunk


def _steps(path: Tensor) -> Tensor:
    """From each view [B, F, 4, 4] to the next: the distance of their centres and of their rotations, [B, F - 1, 2]."""
    rotation = path[..., :3, :3]
    centre = (rotation.mT @ path[..., :3, 3:])[..., 0]
    return torch.stack([(each[:, 1:] - each[:, :-1]).flatten(2).norm(dim=-1) for each in (centre, rotation)], -1)
