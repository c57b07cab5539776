"""The one place where a driver waits for its device: once a chunk for the cameras, once a guarded step for a drift.

A program that keeps results but decides nothing waits once a call, for the checksums of what they came from.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

_COUNT = itertools.count()


def reads() -> int:
    """How often this was asked and :func:`to_host` called so far in this process; differences tell the calls."""
    return next(_COUNT)


def to_host(values: Tensor) -> Tensor:
    """``values`` in float64 on the CPU. Everything that decides on numbers from a device reads them through this."""
    next(_COUNT)
    return values.detach().to("cpu", torch.float64)


def together(parts: Sequence[Tensor]) -> list[Tensor]:
    """``parts`` by one :func:`to_host`, in their shapes; integers of up to 53 bits stay exact."""
    if not parts:
        return []
    device = parts[0].device
    flat = to_host(torch.cat([part.detach().to(device, torch.float64).flatten() for part in parts]))
    return [
        numbers.reshape(part.shape)
        for numbers, part in zip(flat.split([part.numel() for part in parts]), parts, strict=True)
    ]
