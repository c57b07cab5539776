"""Quality of frames, and how sure a mean over scenes is. Images are compared by torchmetrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightint_compile.errors import extra_needed

HIGHEST = 100.0
"""PSNR, in dB, of frames that are equal: more is not told apart."""

RESAMPLES = 2000
COVERAGE = 0.95


def check_torchmetrics() -> None:
    """Raise InputError where torchmetrics is not installed."""
    _functions()


def _functions() -> Any:
    with extra_needed("evaluate", "frames cannot be compared", "lightint evaluate"):
        from torchmetrics.functional import image
    return image


def psnr(frames: Tensor, truth: Tensor) -> Tensor:
    """Peak signal to noise in dB, [F], of frames [F, 3, H, W] in [0, 1]; at most `HIGHEST`."""
    found: Tensor = _functions().peak_signal_noise_ratio(
        frames, truth, data_range=(0.0, 1.0), dim=(1, 2, 3), reduction="none"
    )
    return found.clamp_max(HIGHEST)


def ssim(frames: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity, [F], of frames [F, 3, H, W] in [0, 1], by the usual Gaussian window of 11 pixels."""
    found: Tensor = _functions().structural_similarity_index_measure(
        frames, truth, data_range=(0.0, 1.0), reduction="none"
    )
    return found


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of what is there; `None` where nothing is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def interval(values: Sequence[float | None], seed: int = 0) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of the mean over scenes; `None` for fewer than two.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    known = np.array([value for value in values if value is not None])
    if len(known) < 2:
        return None
    picks = np.random.default_rng(seed).integers(0, len(known), (RESAMPLES, len(known)))
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(known[picks].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def worst_decile(values: Sequence[float]) -> float | None:
    """The mean of the lowest tenth, at least of one value."""
    count = max(1, len(values) // 10)
    return float(np.mean(np.sort(np.array(values))[:count])) if len(values) else None


def by_chunk(values: Tensor, size: int) -> list[float]:
    """Means of whole chunks of `size` frames."""
    return torch.stack([part.mean() for part in values.split(size)]).tolist() if len(values) else []
