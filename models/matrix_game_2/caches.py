"""Keys and values that are kept from chunk to chunk, in tensors that are written in place."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .config import MatrixGame2Config


class Kept(NamedTuple):
    """Keys and values [B, places, heads, head_dim] of one attention."""

    key: Tensor
    value: Tensor


class Caches(NamedTuple):
    """What a rollout keeps, a `Kept` for each block (or for each block with actions).

    `frames` of self-attention has a place for each token of a window, `mouse` and `keyboard` one for each of its
    frames; `mouse` has a row for each position of a frame. `image` is of cross-attention, written in the first call.
    """

    frames: list[Kept]
    mouse: list[Kept]
    keyboard: list[Kept]
    image: list[Kept]


class Slot(NamedTuple):
    """Frames `start` to `end` of the window, where a chunk lies. `dropped` of the oldest make room for it first."""

    start: int
    end: int
    dropped: int


def slot_of(config: MatrixGame2Config, held: int) -> Slot:
    """The slot of a new chunk in caches that hold so many frames."""
    dropped = max(held + config.chunk - config.window, 0)
    return Slot(held - dropped, held - dropped + config.chunk, dropped)


def empty_caches(
    config: MatrixGame2Config,
    batch: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Caches:
    """Zeros, for the first chunk of a rollout."""
    tokens, head = config.tokens_per_frame, config.action_size // config.action_heads

    def made(blocks: int, rows: int, places: int, heads: int, dim: int) -> list[Kept]:
        shape = (rows, places, heads, dim)
        return [Kept(*(torch.zeros(shape, device=device, dtype=dtype) for _ in Kept._fields)) for _ in range(blocks)]

    acting = (config.action_heads, head)
    return Caches(
        frames=made(config.depth, batch, config.window * tokens, config.heads, config.head_dim),
        mouse=made(config.action_blocks, batch * tokens, config.window, *acting),
        keyboard=made(config.action_blocks, batch, config.window, *acting),
        image=made(config.depth, batch, config.image_tokens, config.heads, config.head_dim),
    )


def remember(kept: Kept, new: Kept, slot: Slot, places: int = 1) -> Kept:
    """Write a chunk's keys and values, `places` for each frame, and return those of the frames up to its end."""
    start, end, dropped = (places * frames for frames in slot)
    for held, written in zip(kept, new, strict=True):
        if dropped:
            held[:, :start] = held[:, dropped : dropped + start].clone()
        held[:, start:end] = written
    return Kept(kept.key[:, :end], kept.value[:, :end])
