"""How much activations and latents change: the numbers that guards read, computed on the device they live on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, avg_pool2d

from lightint_compile.passes.ir.ranks import process_group

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


def relative_change(now: Tensor, before: Tensor, group: str = "") -> Tensor:
    """Largest relative change of a tile of tokens from ``before`` to ``now`` [B, tokens, channels]: [B] in float32.

    Of each tile of 64 tokens (the last may be shorter), the mean absolute change over the mean absolute value; a tile
    near zero is measured against a tenth of the mean of its batch element, so that noise in an empty corner decides
    nothing. Elements of a batch do not enter each other's number. Nothing waits for the device, and one copy in float32
    is made, of the change: the rest is a dozen kernels whatever the number of tokens.

    With a process ``group`` the tokens are one rank's part: ranks tell each other two numbers a token, so that all of
    them get the same result, over the tokens of all.
    """
    wide = torch.promote_types(before.dtype, torch.float32)
    before, now = (x.detach().reshape(x.shape[0], -1, x.shape[-1]) for x in (before, now))
    sums = before.new_empty((2, *before.shape[:2]), dtype=wide)  # over channels, whose number the quotient does not see
    torch.linalg.vector_norm(before.to(wide, copy=True).sub_(now), 1, -1, out=sums[0])
    torch.linalg.vector_norm(before, 1, -1, dtype=wide, out=sums[1])
    sums = of_all_ranks(sums, group) if group else sums
    change, size = avg_pool1d(sums, TILE, ceil_mode=True)
    floor = (0.1 * sums[1].mean(1, keepdim=True)).clamp_min(1e-12 * before.shape[-1])
    return (change / torch.maximum(size, floor)).amax(1).float()


def of_all_ranks(parts: Tensor, group: str) -> Tensor:
    """The parts of all ranks of a process group one behind the other on the last axis."""
    ranks = process_group(group)
    found = [torch.empty_like(parts) for _ in range(ranks.size())]
    torch.distributed.all_gather(found, parts, group=ranks)
    return torch.cat(found, -1)
