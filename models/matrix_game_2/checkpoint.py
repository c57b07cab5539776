"""The chunk module with released weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..checkpoint import load_checkpoint
from .chunk import MatrixGame2Chunk
from .config import MatrixGame2Config


def load_chunk(
    config: MatrixGame2Config,
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
) -> MatrixGame2Chunk:
    """The chunk module with released weights, built on the meta device so that weights exist once.

    The released code loads its weights into a wrapper, so their keys begin with `model.`. Errors are
    `load_checkpoint`'s.
    """
    with torch.device("meta"):
        chunk = MatrixGame2Chunk(config)
    load_checkpoint(nn.ModuleDict({"model": chunk.transformer}), folder, device, dtype)
    return chunk.eval()
