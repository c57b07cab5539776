"""Random numbers as a function of a seed and of keys: the same on every device and in every version of torch.

Everything is integer arithmetic on 32 bits held in int64, so no product overflows. The mixer is Chris Wellons's
`lowbias32`.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = 0xFFFFFFFF


def mixed(value: Tensor) -> Tensor:
    """A bijection of 32-bit numbers (int64) that spreads every bit over all."""
    value = value & _BITS
    value = ((value ^ (value >> 16)) * 0x21F0AAAD) & _BITS
    value = ((value ^ (value >> 15)) * 0x735A2D97) & _BITS
    return value ^ (value >> 15)


def draw(seeds: Tensor, *keys: int | Tensor) -> Tensor:
    """Numbers in [0, 2^32), int64, of seeds (int64) and keys below 2^31 that broadcast with them."""
    state = mixed(seeds + 0x2545F491)
    for key in keys:
        state = mixed(state ^ mixed(torch.as_tensor(key, device=seeds.device) + 0x3C6EF372))
    return state


def below(bound: int, seeds: Tensor, *keys: int | Tensor) -> Tensor:
    """Whole numbers in [0, bound), int64; bound is small against 2^32."""
    return draw(seeds, *keys) % bound


def uniform(seeds: Tensor, *keys: int | Tensor) -> Tensor:
    """Numbers in [0, 1), float64, exact multiples of 2^-32."""
    return draw(seeds, *keys).double() / 2.0**32
