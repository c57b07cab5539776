"""The one place where a driver waits for its device: once a chunk for the cameras, once a guarded step for a drift."""

from __future__ import annotations

import torch
from torch import Tensor


def to_host(values: Tensor) -> Tensor:
    """``values`` in float64 on the CPU. Everything that decides on numbers from a device reads them through this."""
    return values.detach().to("cpu", torch.float64)
