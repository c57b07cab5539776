"""Flow matching with a shifted schedule, integrated by Euler steps."""

from __future__ import annotations

from torch import Tensor

from lightint_compile.errors import InputError

from ..dtypes import wide


def sigmas(steps: int, shift: float) -> list[float]:
    """Noise levels from 1 to 0, `steps + 1` of them: `shift*s / (1 + (shift-1)*s)` for s evenly spaced."""
    if steps < 1 or shift <= 0:
        why = f"steps is {steps}, shift is {shift}"
        raise InputError("A schedule needs at least one step and a positive shift.", where="sigmas", why=why)
    even = [1.0 - index / steps for index in range(steps + 1)]
    return [shift * level / (1.0 + (shift - 1.0) * level) for level in even]


def timesteps(steps: int, shift: float) -> list[float]:
    """1000 times every sigma but the last: what the network is told; 1000, 937.5, 833.333, 625 for 4 steps, shift 5."""
    return [1000.0 * sigma for sigma in sigmas(steps, shift)[:-1]]


def euler_step(latents: Tensor, velocity: Tensor, sigma: float, next_sigma: float) -> Tensor:
    """`x + v * (next - sigma)` in float32 or wider, rounded back to the dtype of the latents after every step."""
    dtype = wide(latents.dtype)
    return (latents.to(dtype) + velocity.to(dtype) * (next_sigma - sigma)).to(latents.dtype)
