"""The clip module with released weights, and its 8-bit form."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import nn

from ..checkpoint import load_checkpoint
from .clip import MatrixGameClip
from .config import MatrixGameConfig
from .layers import Int8Linear


def load_clip(
    config: MatrixGameConfig,
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
) -> MatrixGameClip:
    """The clip module with released weights, built on the meta device so that weights exist once.

    With `config.int8` the checkpoint must hold `weight_int8` and `weight_scales` of the attentions' projections; those
    keep their own dtypes. Errors are `load_checkpoint`'s.
    """
    with torch.device("meta"):
        clip = MatrixGameClip(config)
    load_checkpoint(clip.transformer, folder, device, dtype)
    return clip.eval()


def to_int8(clip: MatrixGameClip) -> MatrixGameClip:
    """The same clip, changed in place, with the projections of both attentions rounded to 8 bit."""
    for module in list(clip.transformer.modules()):
        for name in ("q", "k", "v", "o"):
            linear = getattr(module, name, None)
            if isinstance(linear, nn.Linear):
                setattr(module, name, Int8Linear.of(linear))
    clip.config = clip.transformer.config = dataclasses.replace(clip.config, int8=True)
    return clip
