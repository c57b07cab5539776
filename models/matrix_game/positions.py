"""Positions of tokens: RoPE over (t, h, w), whose base differs from head to head.

Head n of N has the base `theta * (1 + spread * e_n)` with e_n evenly spaced from -1 to 1, so that heads see time and
space at different scales (2000 to 18000 in the released Matrix-Game-3.0; Matrix-Game-2.0 has one base). The temporal
position of a frame is its index in the whole video: memory frames keep theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .sizes import GameSizes

RopeTable = tuple[Tensor, Tensor]

_MAX_PERIOD = 1e4


def head_frequencies(config: GameSizes, axis: int, device: torch.device) -> Tensor:
    """Radians a position [heads, pairs], float64, of one axis: theta^(-j / pairs), one row if heads are alike."""
    pairs, heads = config.rope_dims[axis] // 2, config.heads if config.rope_spread else 1
    spread = torch.linspace(-1.0, 1.0, heads, dtype=torch.float64, device=device) * config.rope_spread
    exponents = torch.arange(pairs, dtype=torch.float64, device=device) / pairs
    return 1.0 / ((config.rope_theta * (1.0 + spread))[:, None] ** exponents)


def rope_table(config: GameSizes, frames: Tensor, dtype: torch.dtype) -> RopeTable:
    """Cosine and sine [T*S1, heads, head_dim] of tokens in (t, h, w) order, each repeated for its channel pair.

    frames [T] are the frames' indices in the video. Angles are float64 until the end. One head where all are alike.
    """
    height, width = config.grid
    time = frames.shape[0]
    positions = (frames, torch.arange(height, device=frames.device), torch.arange(width, device=frames.device))
    parts = []
    for axis, places in enumerate(positions):
        angles = places.double()[:, None, None] * head_frequencies(config, axis, frames.device)
        shape = [1, 1, 1, *angles.shape[1:]]
        shape[axis] = places.shape[0]
        parts.append(angles.reshape(shape).expand(time, height, width, -1, -1))
    angles = torch.cat(parts, dim=-1).flatten(0, 2).repeat_interleave(2, dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def axis_table(config: GameSizes, frames: Tensor, dtype: torch.dtype) -> RopeTable:
    """Cosine and sine [T, action_head_dim] of the action module at frames [T]: time turns the first channels."""
    time, *rest = config.action_rope_dims
    exponents = torch.arange(0, time, 2, device=frames.device, dtype=dtype) / time
    angles = frames.to(dtype)[:, None] / config.action_rope_theta**exponents
    angles = torch.cat([angles, angles.new_zeros(frames.shape[0], sum(rest) // 2)], dim=-1)
    angles = angles.repeat_interleave(2, dim=-1)
    return angles.cos(), angles.sin()


def apply_rope(heads: Tensor, table: RopeTable) -> Tensor:
    """Rotate interleaved channel pairs of heads [..., D] by a table that broadcasts to them, in the table's dtype."""
    cosine, sine = table
    heads = heads.to(cosine.dtype)
    even, odd = heads.unflatten(-1, (-1, 2)).unbind(-1)
    return heads * cosine + torch.stack([-odd, even], dim=-1).flatten(-2) * sine


def sinusoid(timestep: Tensor, frequencies: int, dtype: torch.dtype) -> Tensor:
    """Timesteps [...] as [cos, sin] [..., frequencies] in `dtype`; angles are float64."""
    half = frequencies // 2
    steps = torch.arange(half, device=timestep.device, dtype=torch.float64)
    angles = timestep.double()[..., None] * _MAX_PERIOD ** (-steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)
