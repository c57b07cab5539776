"""Measuring how far results are from the exact ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightint_compile.options.error_limits import Deviation


def results_of(outputs: Any) -> list[Tensor]:
    """The floating-point tensors among a graph's flat outputs."""
    flat = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    return [value for value in flat if isinstance(value, Tensor) and value.is_floating_point()]


def deviation_of(exact: Sequence[Tensor], got: Sequence[Tensor]) -> Deviation:
    """The worst deviation of a result, in float64 on the device of the results."""
    found = Deviation()
    for one, other in zip(exact, got, strict=True):
        found = found.worst(_of_one(one.detach().double(), other.detach().to(one.device).double()))
    return found


def _of_one(exact: Tensor, got: Tensor) -> Deviation:
    if not exact.numel():
        return Deviation()
    error, size, low, high = torch.stack(
        [(got - exact).square().mean(), exact.square().mean(), exact.amin(), exact.amax()]
    ).tolist()
    if error == 0:
        return Deviation()
    if not math.isfinite(error) or size == 0 or high == low:
        return Deviation(math.inf, -math.inf)
    return Deviation(math.sqrt(error / size), 10 * math.log10((high - low) ** 2 / error))
