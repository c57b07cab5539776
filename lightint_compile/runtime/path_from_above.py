"""A camera path from above, as numbers that can be drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from lightint_compile.runtime.decision import Decision


def from_above(cameras: Tensor) -> dict[str, list[float]]:
    """Where each camera stands on the ground plane, and where it looks.

    Args:
        cameras: world-to-camera [F, 4, 4], y downwards, z forwards.

    Returns:
        ``x`` and ``z`` of the centres in the units of the cameras, and ``heading``, the angle from the z axis towards
        the x axis in radians, a number for each frame.
    """
    rotation = cameras[:, :3, :3].double()
    centre = -(rotation.mT @ cameras[:, :3, 3:].double())[..., 0]
    forward = rotation[:, 2]
    heading = torch.atan2(forward[:, 0], forward[:, 2])
    return {name: _rounded(values) for name, values in (("x", centre[:, 0]), ("z", centre[:, 2]), ("heading", heading))}


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 5) for value in values.tolist()]


def own_frames(decision: Decision, chunk_frames: int, lead: int) -> tuple[int, int]:
    """The latent frames [first, end) of a decision's chunk in its rollout, ``lead`` frames in front of the first."""
    first = lead + decision.chunk * chunk_frames if decision.chunk else 0
    return first, lead + (decision.chunk + 1) * chunk_frames
