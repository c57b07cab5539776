"""A few numbers of every weight, by which models are told apart that are alike but for them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

SAMPLED = 16
"""Numbers of each weight, spread over it."""


def samples_of(weights: Iterable[Tensor]) -> list[bytes]:
    """Those of each device, which come to the host at once; of weights without values none."""
    found: dict[torch.device, list[Tensor]] = {}
    with torch.no_grad():
        for weight in weights:
            if weight.is_meta:
                continue
            flat = weight.detach().reshape(-1)
            picked = flat[:: max(len(flat) // SAMPLED, 1)]
            real = torch.view_as_real(picked).reshape(-1) if picked.is_complex() else picked
            found.setdefault(weight.device, []).append(real.double())
        return [torch.cat(each).cpu().numpy().tobytes() for each in found.values()]
