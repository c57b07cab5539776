"""One transformer block: self-attention over the window, cross-attention to the image, actions and an MLP."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..matrix_game.actions import ActionLayers, overlapping
from ..matrix_game.blocks import Attention
from ..matrix_game.layers import LayerNorm, plain_norm
from ..matrix_game.positions import RopeTable, apply_rope
from .caches import Kept, Slot, remember
from .config import MatrixGame2Config


class Conditions(NamedTuple):
    """What all blocks read.

    `modulation` [B, F, 6, hidden] of the timesteps; `positions` the RoPE table of the chunk's tokens, and `times` that
    of its frames for actions; `mouse` [B, V, axes] and `keyboard` [B, V, keys] of the video frames that the chunk sees;
    `slot` is its place in the caches; `seen` [B, L, hidden] features of the image, None where the caches have them.
    """

    modulation: Tensor
    positions: RopeTable
    times: RopeTable
    mouse: Tensor
    keyboard: Tensor
    slot: Slot
    seen: Tensor | None


class BlockCaches(NamedTuple):
    """The caches of one block; those of actions are None where it has none."""

    frames: Kept
    image: Kept
    mouse: Kept | None
    keyboard: Kept | None


class SelfAttention(Attention):
    """Tokens of the chunk attend to those of the window, the chunk's own among them."""

    def __init__(self, config: MatrixGame2Config) -> None:
        super().__init__(config, partial(nn.Linear, config.hidden_size, config.hidden_size))
        self.config = config

    def forward(self, tokens: Tensor, positions: RopeTable, kept: Kept, slot: Slot) -> Tensor:
        """tokens [B, F*S1, hidden] -> [B, F*S1, hidden]; their keys and values are written to `kept`."""
        query, key = self._split(self.norm_q(self.q(tokens))), self._split(self.norm_k(self.k(tokens)))
        value = self._split(self.v(tokens))
        query, key = (apply_rope(each, positions).to(value.dtype) for each in (query, key))
        window = remember(kept, Kept(key, value), slot, self.config.tokens_per_frame)
        return self.o(self._attend(query, *window))


class CrossAttention(Attention):
    """Every token attends to the first image."""

    def __init__(self, config: MatrixGame2Config) -> None:
        super().__init__(config, partial(nn.Linear, config.hidden_size, config.hidden_size))

    def forward(self, tokens: Tensor, seen: Tensor | None, kept: Kept) -> Tensor:
        """tokens [B, N, hidden] -> [B, N, hidden]; keys and values of `seen` [B, L, hidden] are written to `kept`."""
        if seen is not None:
            kept.key.copy_(self._split(self.norm_k(self.k(seen))))
            kept.value.copy_(self._split(self.v(seen)))
        return self.o(self._attend(self._split(self.norm_q(self.q(tokens))), *kept))


class CausalActions(ActionLayers):
    """Mouse and keyboard of the window, added to the tokens of the chunk."""

    def forward(self, tokens: Tensor, conditions: Conditions, mouse: Kept, keyboard: Kept) -> Tensor:
        """tokens [B, F*S1, hidden] -> the same; keys and values of the chunk are written to `mouse` and `keyboard`."""
        tokens = tokens + self.proj_mouse(self._mouse(tokens, conditions, mouse))
        return tokens + self.proj_keyboard(self._keyboard(tokens, conditions, keyboard))

    def _mouse(self, tokens: Tensor, conditions: Conditions, kept: Kept) -> Tensor:
        grouped = overlapping(conditions.mouse.to(tokens.dtype), self.config.action_window)
        query, key, value = self._mouse_heads(tokens, grouped, conditions.times)
        window = remember(kept, Kept(key, value), conditions.slot)
        return self._over_time(query, *window, tokens.shape[0])

    def _keyboard(self, tokens: Tensor, conditions: Conditions, kept: Kept) -> Tensor:
        embedded = self.keyboard_embed(conditions.keyboard.to(tokens.dtype))
        grouped = overlapping(embedded, self.config.action_window)
        query, key, value = self._keyboard_heads(tokens, grouped, conditions.times)
        window = remember(kept, Kept(key, value), conditions.slot)
        return self._over_time(query, *self._everywhere(*window), tokens.shape[0])


class Block(nn.Module):
    """One of the blocks; those with `actions` have an action module."""

    def __init__(self, config: MatrixGame2Config, actions: bool) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.modulation = nn.Parameter(torch.randn(1, 6, hidden) / hidden**0.5)
        self.norm1 = plain_norm(hidden)
        self.self_attn = SelfAttention(config)
        self.norm3 = LayerNorm(hidden, eps=1e-6)
        self.cross_attn = CrossAttention(config)
        self.action_model = CausalActions(config) if actions else None
        self.norm2 = plain_norm(hidden)
        self.ffn = nn.Sequential(
            nn.Linear(hidden, config.mlp_size), nn.GELU(approximate="tanh"), nn.Linear(config.mlp_size, hidden)
        )

    def forward(self, tokens: Tensor, conditions: Conditions, caches: BlockCaches) -> Tensor:
        """tokens [B, F*S1, hidden] -> [B, F*S1, hidden]."""
        modulation = (self.modulation[:, None] + conditions.modulation)[:, :, :, None]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation.unbind(2)
        inner = modulated(self.norm1(tokens), scale, shift)
        tokens = tokens + gated(self.self_attn(inner, conditions.positions, caches.frames, conditions.slot), gate)
        tokens = tokens + self.cross_attn(self.norm3(tokens), conditions.seen, caches.image)
        if self.action_model is not None:
            tokens = self.action_model(tokens, conditions, caches.mouse, caches.keyboard)
        return tokens + gated(self.ffn(modulated(self.norm2(tokens), mlp_scale, mlp_shift)), mlp_gate)


class Head(nn.Module):
    """Tokens to the channels of a patch, modulated by the embedded timestep itself."""

    def __init__(self, config: MatrixGame2Config) -> None:
        super().__init__()
        hidden, patch = config.hidden_size, config.patch_size
        self.modulation = nn.Parameter(torch.randn(1, 2, hidden) / hidden**0.5)
        self.norm = plain_norm(hidden)
        self.head = nn.Linear(hidden, patch[1] * patch[2] * config.out_channels)

    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        """tokens [B, F*S1, hidden], time [B, F, hidden] -> [B, F*S1, patch area * out_channels], channels last."""
        shift, scale = (self.modulation[:, None] + time[:, :, None])[:, :, :, None].unbind(2)
        return self.head(modulated(self.norm(tokens), scale, shift))


def modulated(tokens: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """tokens [B, F*S1, C], scaled and shifted by [B, F, 1, C]."""
    return (tokens.unflatten(1, (scale.shape[1], -1)) * (1 + scale) + shift).flatten(1, 2)


def gated(tokens: Tensor, gate: Tensor) -> Tensor:
    """tokens [B, F*S1, C] times [B, F, 1, C]."""
    return (tokens.unflatten(1, (gate.shape[1], -1)) * gate).flatten(1, 2)
