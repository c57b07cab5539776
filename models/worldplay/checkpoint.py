"""The chunk module with released weights."""

from __future__ import annotations

from pathlib import Path

import torch

from ..checkpoint import load_checkpoint
from .chunk import WorldPlayChunk
from .config import WorldPlayConfig


def load_chunk(
    config: WorldPlayConfig, folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.bfloat16
) -> WorldPlayChunk:
    """The chunk module with released weights, built on the meta device so that weights exist once; errors are
    `load_checkpoint`'s."""
    with torch.device("meta"):
        chunk = WorldPlayChunk(config)
    load_checkpoint(chunk.transformer, folder, device, dtype)
    chunk.selector.to_empty(device=device)
    return chunk.eval()
