"""Recorded hand-held walks: ground truth of the TUM RGB-D benchmark (CC BY 4.0; README.md says what was changed)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightint_compile.errors import InputError

LATENT_RATE = 6.0
"""Latent frames a second: 24 video frames a second, four to a latent frame."""

_STRIDE = 3.7
"""Seconds between the starts of two stretches of the same recording."""


@cache
def recordings() -> tuple[tuple[Tensor, Tensor], ...]:
    """Camera-to-world poses [n, 4, 4] in metres and times [n] in seconds, float64, of every recording."""
    with np.load(Path(__file__).parent / "tum_rgbd.npz") as pieces:
        return tuple(_read(torch.from_numpy(pieces[name]).double()) for name in sorted(pieces))


def recording(number: int, frames: int) -> tuple[Tensor, Tensor]:
    """Stretch `number` of the recordings, as long as `frames` latent frames: poses and times.

    Raises:
        InputError: no recording is that long.
    """
    seconds = (frames - 1) / LATENT_RATE
    long_enough = [each for each in recordings() if float(each[1][-1]) > seconds]
    if not long_enough:
        longest = max(float(times[-1]) for _, times in recordings())
        fix = f"at most {int(longest * LATENT_RATE)}"
        raise InputError("no recording is long enough", where="--latents", why=f"{seconds:.1f} s are asked", fix=fix)
    poses, times = long_enough[number % len(long_enough)]
    start = (number // len(long_enough) * _STRIDE) % (float(times[-1]) - seconds)
    chosen = (times >= start - 1e-6) & (times <= start + seconds + 1e-6)
    return poses[chosen], times[chosen]


def _read(rows: Tensor) -> tuple[Tensor, Tensor]:
    poses = torch.eye(4, dtype=torch.float64).repeat(len(rows), 1, 1)
    poses[:, :3, :3] = _rotations(rows[:, 4:])
    poses[:, :3, 3] = rows[:, 1:4]
    return poses, rows[:, 0]


def _rotations(quaternions: Tensor) -> Tensor:
    """Matrices [n, 3, 3] of quaternions [n, 4] (x, y, z, w)."""
    x, y, z, w = torch.nn.functional.normalize(quaternions, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
