"""Inputs of the right shapes, from a seed: for tests, measurements and first contact."""

from __future__ import annotations

from typing import Any

import torch

from ..random_weights import drawer
from .caches import Caches, Kept, empty_caches
from .config import MatrixGame2Config


def example_inputs(
    config: MatrixGame2Config,
    before: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    batch: int = 1,
) -> dict[str, Any]:
    """Arguments of `MatrixGame2Chunk.forward` by name, for a chunk after `before` latent frames.

    Caches are random, and a call writes to them: the same arguments give other latents in the next call where a full
    window moves. On the meta device the values are absent and only shapes are made.
    """
    draw = drawer(device, dtype, seed)
    size = (config.chunk, config.latent_height, config.latent_width)
    empty = empty_caches(config, batch, "meta", dtype)
    caches = Caches(*([Kept(*(draw(*each.shape) for each in kept)) for kept in part] for part in empty))
    return {
        "noise": draw(len(config.levels), batch, config.out_channels, *size),
        "image": draw(batch, config.condition_channels, *size),
        "seen": draw(batch, config.image_tokens, config.image_size),
        "mouse": draw(batch, config.action_rows, config.mouse_axes),
        "keyboard": draw(batch, config.action_rows, config.keys),
        "frames": torch.arange(before, before + config.chunk, device=device),
        "caches": caches,
        "held": min(before, config.window),
    }
