"""One transformer block: self-attention, camera injection, cross-attention, actions and an MLP; and the head.

Written for clarity, not speed, as the released code is: cameras are injected anew in each denoising step, the
modulation is per token although there are two timesteps, position tables are built in each block, and rows of padding
run through everything but the action module.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..dtypes import wide
from .actions import ActionModule
from .config import MatrixGameConfig
from .layers import LayerNorm, RMSNorm, WideLinear, plain_norm, projection
from .positions import apply_rope, rope_table
from .sizes import GameSizes


class Conditions(NamedTuple):
    """What all blocks read.

    `modulation` [B, N, 6, hidden] float32 of the timestep; `cameras` [B, N, hidden]; `text` [B, L, hidden]; `frames`
    [T] the frames' indices in the video, of which the first `memory` are memory; `mouse` [B, V, 2] and `keyboard`
    [B, V, 6] of the clip's video frames. N is T*S1 and padding behind.
    """

    modulation: Tensor
    cameras: Tensor
    text: Tensor
    frames: Tensor
    memory: int
    mouse: Tensor
    keyboard: Tensor


class Attention(nn.Module):
    """Projections and norms, with the names that the checkpoint gives them."""

    def __init__(self, config: GameSizes, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.heads = config.heads
        self.q, self.k, self.v, self.o = (make() for _ in range(4))
        self.norm_q = RMSNorm(config.hidden_size)
        self.norm_k = RMSNorm(config.hidden_size)

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[B, N, heads, head_dim] -> [B, N, hidden], in the dtype of the model's weights."""
        dtype = self.norm_q.weight.dtype
        query, key, value = (each.to(dtype).transpose(1, 2) for each in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class SelfAttention(Attention):
    """Every token attends to all tokens of memory and clip, but to no padding."""

    def __init__(self, config: MatrixGameConfig) -> None:
        super().__init__(config, partial(projection, config, widened=True))
        self.config = config

    def forward(self, tokens: Tensor, frames: Tensor) -> Tensor:
        """tokens [B, N, hidden], frames [T] with T*S1 <= N -> [B, N, hidden] in float32, or as `tokens` with 8 bit."""
        length = frames.shape[0] * self.config.tokens_per_frame
        query, key = self._split(self.norm_q(self.q(tokens))), self._split(self.norm_k(self.k(tokens)))
        value = self._split(self.v(tokens))
        table = rope_table(self.config, frames, wide(tokens.dtype))
        # Padding keeps its place among queries, and is cut from keys and values.
        query = torch.cat([apply_rope(query[:, :length], table), query[:, length:].to(table[0].dtype)], dim=1)
        key = apply_rope(key[:, :length], table)
        return self.o(self._attend(query, key, value[:, :length]).to(wide(tokens.dtype)))


class CrossAttention(Attention):
    """Every token attends to the text, its padding included."""

    def __init__(self, config: MatrixGameConfig) -> None:
        super().__init__(config, partial(projection, config, widened=False))

    def forward(self, tokens: Tensor, text: Tensor) -> Tensor:
        """tokens [B, N, hidden], text [B, L, hidden] -> [B, N, hidden] in the dtype of the weights."""
        dtype = self.norm_q.weight.dtype
        tokens, text = tokens.to(dtype), text.to(dtype)
        query, key = self._split(self.norm_q(self.q(tokens))), self._split(self.norm_k(self.k(text)))
        return self.o(self._attend(query, key, self._split(self.v(text))))


class Block(nn.Module):
    """One of the blocks; those with `actions` have an action module."""

    def __init__(self, config: MatrixGameConfig, actions: bool) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden_size
        self.modulation = nn.Parameter(torch.randn(1, 6, hidden) / hidden**0.5)
        self.norm1 = plain_norm(hidden)
        self.self_attn = SelfAttention(config)
        self.cam_injector_layer1 = nn.Linear(hidden, hidden)
        self.cam_injector_layer2 = nn.Linear(hidden, hidden)
        self.cam_scale_layer = nn.Linear(hidden, hidden)
        self.cam_shift_layer = nn.Linear(hidden, hidden)
        self.norm3 = LayerNorm(hidden, eps=1e-6)
        self.cross_attn = CrossAttention(config)
        self.action_model = ActionModule(config) if actions else None
        self.norm2 = plain_norm(hidden)
        self.ffn = nn.Sequential(
            nn.Linear(hidden, config.mlp_size), nn.GELU(approximate="tanh"), nn.Linear(config.mlp_size, hidden)
        )

    def forward(self, tokens: Tensor, conditions: Conditions) -> Tensor:
        """tokens [B, N, hidden] -> [B, N, hidden] in float32 or wider."""
        modulation = self.modulation[:, None].to(conditions.modulation.dtype) + conditions.modulation
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation.unbind(2)
        inner = (self.norm1(tokens) * (1 + scale) + shift).to(tokens.dtype)
        tokens = tokens + self.self_attn(inner, conditions.frames) * gate
        tokens = self._inject(tokens, conditions.cameras)
        # The norm takes the place of the residual stream.
        tokens = self.norm3(tokens)
        tokens = tokens + self.cross_attn(tokens, conditions.text)
        tokens = self._act(tokens, conditions)
        inner = (self.norm2(tokens) * (1 + mlp_scale) + mlp_shift).to(conditions.cameras.dtype)
        return tokens + self.ffn(inner) * mlp_gate

    def _inject(self, tokens: Tensor, cameras: Tensor) -> Tensor:
        cameras = cameras + self.cam_injector_layer2(F.silu(self.cam_injector_layer1(cameras)))
        return (1.0 + self.cam_scale_layer(cameras)) * tokens + self.cam_shift_layer(cameras)

    def _act(self, tokens: Tensor, conditions: Conditions) -> Tensor:
        if self.action_model is None:
            return tokens
        length = conditions.frames.shape[0] * self.config.tokens_per_frame
        actual = tokens[:, :length].to(conditions.cameras.dtype)
        actual = self.action_model(actual, conditions.mouse, conditions.keyboard, conditions.memory)
        return torch.cat([actual.to(tokens.dtype), tokens[:, length:]], dim=1)


class Head(nn.Module):
    """Tokens to the channels of a patch, modulated by the embedded timestep itself."""

    def __init__(self, config: MatrixGameConfig) -> None:
        super().__init__()
        hidden, patch = config.hidden_size, config.patch_size
        self.modulation = nn.Parameter(torch.randn(1, 2, hidden) / hidden**0.5)
        self.norm = plain_norm(hidden)
        self.head = WideLinear(hidden, patch[1] * patch[2] * config.out_channels)

    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        """tokens and time [B, N, hidden] -> [B, N, patch area * out_channels], channels last."""
        shift, scale = (self.modulation[:, None].to(time.dtype) + time[:, :, None]).unbind(2)
        return self.head(self.norm(tokens) * (1 + scale) + shift)
