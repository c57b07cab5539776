"""What needs no model: the bounds between which a figure of quality means something."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from .true_world import TrueWorld


def copy_last_frame(world: TrueWorld, truth: Tensor, latents: Tensor, given: int) -> Tensor:
    """The last given frame of the truth, again and again."""
    return truth[given - 1 : given].expand(len(truth) - given, *truth.shape[1:])


def codec(world: TrueWorld, truth: Tensor, latents: Tensor, given: int) -> Tensor:
    """The truth through the codec: no model that makes latents can be better."""
    return world.decode(latents[:, :, given:])


BASELINES: Mapping[str, Callable[[TrueWorld, Tensor, Tensor, int], Tensor]] = {
    "copy-last-frame": copy_last_frame,
    "codec": codec,
}
"""Frames [F - given, 3, H, W] of every baseline, from truth [F, 3, H, W] and its latents [1, C, F, h, w]."""
