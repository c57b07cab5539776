"""Which frames of a path show what was seen before: where memory matters."""

from __future__ import annotations

import torch
from torch import Tensor

from lightint_compile.models.world_model import CameraPath
from lightint_compile.passes.ir.world_spec import WorldSpec
from lightint_compile.runtime.view_overlap import angular_view

SEEN_AGAIN = 0.7
"""Share of a view that an earlier frame must have shown: the threshold of the published rules."""


def revisited(path: CameraPath, spec: WorldSpec) -> Tensor:
    """Bool [frames]: frames that one older than the last chunk shows to 0.7 or more, and better than that chunk.

    Without the second condition every frame of a slow walk ahead would count, which needs no memory.
    """
    view = angular_view(*spec.fov, spec.view_depth)
    cameras = path.extrinsics.double()
    return revisits(view.overlap(cameras, cameras), spec)


def revisits(overlap: Tensor, spec: WorldSpec) -> Tensor:
    """The same from the overlap [frames, frames] of every view with every other."""
    frames = len(overlap)
    found = torch.zeros(frames, dtype=torch.bool)
    for chunk in range(2, spec.chunks(frames)):
        last, first, end = spec.frames(chunk - 1), spec.frames(chunk), spec.frames(chunk + 1)
        older, newest = overlap[first:end, :last].amax(1), overlap[first:end, last:first].amax(1)
        found[first:end] = (older >= SEEN_AGAIN) & (older > newest)
    return found
