"""Inputs and weights from a seed."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import Tensor, nn


def drawer(device: torch.device | str, dtype: torch.dtype, seed: int) -> Callable[..., Tensor]:
    """What draws standard normal tensors of given sizes, one after the other from a seed; on meta, shapes alone."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        if torch.device(device).type == "meta":
            return torch.empty(shape, device=device, dtype=dtype)
        return torch.randn(shape, generator=generator).to(device, dtype)

    return draw


def fill_random(module: nn.Module, seed: int = 0, scale: float = 0.05) -> nn.Module:
    """Overwrite every parameter from a seed, norms around 1 and the rest around 0, and return the module.

    The released initialisation leaves the camera and action paths at zero, which would hide them from any comparison.
    Each tensor is drawn on its own device from the seed and its name, so the values do not depend on the order. The
    deviation is `scale`, at most 1/sqrt(fan_in), which keeps 54 blocks of width 2048 in a healthy range.
    """
    for name, parameter in module.named_parameters():
        if parameter.is_meta:
            continue
        generator = torch.Generator(parameter.device).manual_seed(seed + zlib.crc32(name.encode()))
        deviation = min(scale, parameter[0].numel() ** -0.5) if parameter.ndim > 1 else scale
        with torch.no_grad():
            parameter.normal_(0.0, deviation, generator=generator)
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.add_(1.0)
    return module
