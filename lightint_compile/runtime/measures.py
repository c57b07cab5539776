"""How much activations and latents change: the numbers that guards read, computed on the device they live on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

NEWEST = 5
"""Latent frames whose changes are looked at: the newest chunk and the frame before it."""

TILE = 64
"""Tokens of a tile of an activation."""

SIDE = 4
"""Latent pixels along a side of a tile of a latent frame."""


def latent_dynamics(history: Tensor) -> Tensor:
    """Relative change between the newest latents of ``history`` [B, C, F, h, w]: a scalar in float32.

    The mean absolute change a frame, in the tile where it is largest, over the mean absolute latent: a global mean
    would hide motion in a corner. White noise gives about 1.4, a standing picture 0.
    """
    newest = history[:, :, -NEWEST:].float()
    if newest.shape[2] < 2:
        return newest.new_zeros(())
    change = (newest[:, :, 1:] - newest[:, :, :-1]).abs().mean((1, 2))
    sides = [min(SIDE, size) for size in change.shape[-2:]]
    return avg_pool2d(change[:, None], sides).amax() / newest.abs().mean().clamp_min(1e-12)


def relative_change(now: Tensor, before: Tensor) -> Tensor:
    """Largest relative change of a tile of tokens from ``before`` to ``now`` [B, tokens, channels]: float32, a scalar.

    Of each tile of 64 tokens, the mean absolute change over the mean absolute value; a tile near zero is measured
    against a tenth of the mean of all, so that noise in an empty corner decides nothing.
    """
    change, size = (_tiles(x) for x in ((now.float() - before.float()).abs(), before.float().abs()))
    floor = 0.1 * before.float().abs().mean()
    return (change / torch.maximum(size, floor).clamp_min(1e-12)).amax()


def _tiles(values: Tensor) -> Tensor:
    """Means over tiles of tokens: [B, tiles]; the last tile may be shorter."""
    tokens = values.reshape(values.shape[0], -1, values.shape[-1]).mean(-1)
    return torch.stack([tile.mean(-1) for tile in tokens.split(TILE, dim=1)], 1)
