"""Frames as bytes, for pictures and streams."""

from __future__ import annotations

import torch
from torch import Tensor


def as_bytes(frames: Tensor) -> Tensor:
    """Frames [..., 3, H, W] in [0, 1] as uint8 [..., H, W, 3], rounded; what lies outside is clipped."""
    return (frames.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).movedim(-3, -1).contiguous()
