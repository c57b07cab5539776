"""The transformer: text pass, context prefill, and one denoising step over the current chunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..dtypes import wide
from .blocks import DoubleBlock, FinalLayer, KeyValue, TokenConditions
from .camera import rope_table
from .config import WorldPlayConfig
from .embeddings import GlyphMapper, PatchEmbed, ScalarEmbedder, VisionMapper
from .text import TextEmbedder

_LANGUAGE, _GLYPH, _VISION = 0, 1, 2
"""Rows of `cond_type_embedding`."""


class WorldPlayTransformer(nn.Module):
    """HY-WorldPlay's network; the keys of its state dict are the released checkpoint's."""

    def __init__(self, config: WorldPlayConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden_size
        self.byt5_in = GlyphMapper(config)
        self.img_in = PatchEmbed(config)
        self.vision_in = VisionMapper(config)
        self.txt_in = TextEmbedder(config)
        self.time_in = ScalarEmbedder(hidden)
        self.double_blocks = nn.ModuleList([DoubleBlock(config) for _ in range(config.depth)])
        self.final_layer = FinalLayer(config)
        self.cond_type_embedding = nn.Embedding(3, hidden)
        self.action_in = ScalarEmbedder(hidden)
        for parameter in self.action_in.mlp[2].parameters():
            nn.init.zeros_(parameter)

    def text_cache(self, text: Tensor, glyphs: Tensor, vision: Tensor) -> list[KeyValue]:
        """Text keys and values [B, heads, Ltxt, head_dim] of every block; token order vision, glyphs, text.

        text [B, L, text_dim], glyphs [B, G, glyph_dim] (G may be 0), vision [B, V, vision_dim], padding dropped.
        """
        kinds = self.cond_type_embedding.weight
        parts = [
            self.vision_in(vision) + kinds[_VISION],
            self.byt5_in(glyphs) + kinds[_GLYPH],
            self.txt_in(text) + kinds[_LANGUAGE],
        ]
        tokens = torch.cat(parts, dim=1)
        vector = self.time_in(torch.zeros(tokens.shape[0], 1, device=tokens.device))
        cache = []
        for block in self.double_blocks:
            tokens, key, value = cast(DoubleBlock, block).text(tokens, vector)
            cache.append(KeyValue(key, value))
        return cache

    def prefill(
        self,
        latents: Tensor,
        timestep: Tensor,
        actions: Tensor,
        extrinsics: Tensor,
        intrinsics: Tensor,
        text: Sequence[KeyValue],
    ) -> list[KeyValue]:
        """Keys and values [2B, heads, T*S1, head_dim] of context frames in every block; shapes as in `forward`."""
        conditions = self._conditions(timestep, actions, extrinsics, intrinsics, 0)
        tokens = self.img_in(latents)
        cache = []
        for block, text_entry in zip(self.double_blocks, text, strict=True):
            tokens, key, value = block(tokens, conditions, text_entry)
            cache.append(KeyValue(key, value))
        return cache

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        actions: Tensor,
        extrinsics: Tensor,
        intrinsics: Tensor,
        text: Sequence[KeyValue],
        context: Sequence[KeyValue] | None = None,
        first_position: int = 0,
    ) -> Tensor:
        """Flow velocity [B, out_channels, T, h, w] of the current frames.

        latents [B, input_channels, T, h, w] (noisy latent, condition latent, mask); timestep and actions [B, T] (the
        label as a number); extrinsics [B, T, 4, 4] world-to-camera; intrinsics [B, T, 3, 3] normalised; `context` from
        `prefill`; `first_position` the temporal position of the first frame, which is the number of context frames.
        """
        conditions = self._conditions(timestep, actions, extrinsics, intrinsics, first_position)
        tokens = self.img_in(latents)
        for index, block in enumerate(self.double_blocks):
            tokens, _, _ = block(tokens, conditions, text[index], None if context is None else context[index])
        return self._unpatchify(self.final_layer(tokens, conditions.vector), latents.shape[2])

    def _conditions(
        self, timestep: Tensor, actions: Tensor, extrinsics: Tensor, intrinsics: Tensor, first_position: int
    ) -> TokenConditions:
        per_frame = self.config.tokens_per_frame
        vector = self.time_in(timestep.flatten()) + self.action_in(actions.flatten())
        vector = vector.unflatten(0, timestep.shape)
        rope = rope_table(self.config, timestep.shape[1], first_position, vector.device, wide(vector.dtype))
        return TokenConditions(
            vector=vector.repeat_interleave(per_frame, dim=1),
            extrinsics=extrinsics.repeat_interleave(per_frame, dim=1),
            intrinsics=intrinsics.repeat_interleave(per_frame, dim=1),
            rope=rope,
        )

    def _unpatchify(self, tokens: Tensor, frames: int) -> Tensor:
        height, width = self.config.grid
        _, patch_height, patch_width = self.config.patch_size
        shape = (tokens.shape[0], frames, height, width, self.config.out_channels, patch_height, patch_width)
        return tokens.reshape(shape).permute(0, 4, 1, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)
