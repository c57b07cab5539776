"""The transformer: velocity of a chunk's latents, given the image, actions and what the caches hold."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..dtypes import wide
from ..matrix_game.layers import unpatchify
from ..matrix_game.positions import axis_table, rope_table, sinusoid
from .blocks import Block, BlockCaches, Conditions, Head
from .caches import Caches, Slot
from .config import MatrixGame2Config


class ImageEmbedding(nn.Module):
    """Features of the first image in the channels of the tokens."""

    def __init__(self, config: MatrixGame2Config) -> None:
        super().__init__()
        image, hidden = config.image_size, config.hidden_size
        self.proj = nn.Sequential(
            nn.LayerNorm(image), nn.Linear(image, image), nn.GELU(), nn.Linear(image, hidden), nn.LayerNorm(hidden)
        )

    def forward(self, features: Tensor) -> Tensor:
        """features [B, L, image_size] -> [B, L, hidden]."""
        return self.proj(features)


class MatrixGame2Transformer(nn.Module):
    """Matrix-Game-2.0's network; the keys of its state dict are those of the released model."""

    def __init__(self, config: MatrixGame2Config) -> None:
        super().__init__()
        self.config = config
        hidden, patch = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv3d(config.in_channels, hidden, kernel_size=patch, stride=patch)
        self.time_embedding = nn.Sequential(nn.Linear(config.frequencies, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 6 * hidden))
        self.blocks = nn.ModuleList([Block(config, index < config.action_blocks) for index in range(config.depth)])
        self.head = Head(config)
        self.img_emb = ImageEmbedding(config)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        image: Tensor,
        seen: Tensor | None,
        mouse: Tensor,
        keyboard: Tensor,
        frames: Tensor,
        caches: Caches,
        slot: Slot,
    ) -> Tensor:
        """Flow velocity [B, out_channels, F, h, w] of the chunk, whose keys and values are written to the caches.

        Args:
            latents: [B, out_channels, F, h, w], the chunk's.
            timestep: [B, F], one a frame.
            image: [B, condition_channels, F, h, w], the first image as the chunk's frames are told it.
            seen: [B, L, image_size] features of that image, or None where the caches have their keys and values.
            mouse: [B, `action_rows`, axes] of the latest video frames, up-down and left-right.
            keyboard: [B, `action_rows`, keys].
            frames: [F], indices in the video.
            caches: written in place.
            slot: where the chunk lies in them.
        """
        dtype = wide(latents.dtype)
        tokens = self.patch_embedding(torch.cat([latents, image], dim=1)).flatten(2).transpose(1, 2)
        time = self.time_embedding(sinusoid(timestep, self.config.frequencies, tokens.dtype))
        cosine, sine = axis_table(self.config, frames, dtype)
        conditions = Conditions(
            modulation=self.time_projection(time).unflatten(2, (6, -1)),
            positions=rope_table(self.config, frames, dtype),
            times=(cosine[:, None], sine[:, None]),
            mouse=mouse,
            keyboard=keyboard,
            slot=slot,
            seen=None if seen is None else self.img_emb(seen),
        )
        for index, block in enumerate(self.blocks):
            acts = index < self.config.action_blocks
            actions = (caches.mouse[index], caches.keyboard[index]) if acts else (None, None)
            tokens = block(tokens, conditions, BlockCaches(caches.frames[index], caches.image[index], *actions))
        return unpatchify(self.config, self.head(tokens, time), frames.shape[0])
