"""The dtype rule of the model: statistics, angles and matrices are at least float32."""

from __future__ import annotations

import torch


def wide(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision, the dtype itself for float32 and float64, so that a float64 reference stays one."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32
