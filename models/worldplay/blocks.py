"""One transformer block: a text half run once a prompt, a vision half run in every pass, and the final layer.

Written for clarity, not speed: the modulation is a Linear over every token although it depends on the frame only, the
camera matrices are rebuilt in each block, and text keys are copied for both attention branches.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..dtypes import wide
from .camera import RopeTable, apply_matrix, apply_rope, projection_matrices
from .config import WorldPlayConfig


class KeyValue(NamedTuple):
    """Keys and values [batch, heads, tokens, head_dim] of one block, after norm and rotation."""

    key: Tensor
    value: Tensor


class TokenConditions(NamedTuple):
    """What every vision token carries through all blocks.

    `vector` [B, N, hidden] timestep and action; `extrinsics` [B, N, 4, 4] world-to-camera; `intrinsics` [B, N, 3, 3]
    normalised; `rope` the tables [N, head_dim].
    """

    vector: Tensor
    extrinsics: Tensor
    intrinsics: Tensor
    rope: RopeTable


class RMSNorm(nn.Module):
    """Root-mean-square norm of a head: statistics in float32 or wider, cast back, then the weight."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, heads: Tensor) -> Tensor:
        """heads [..., dim] -> [..., dim]."""
        inner = heads.to(wide(heads.dtype))
        inner = inner * torch.rsqrt(inner.pow(2).mean(-1, keepdim=True) + self.eps)
        return inner.to(heads.dtype) * self.weight


class Modulation(nn.Module):
    """The conditioning vector to shift, scale and gate of the attention and of the MLP."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, 6 * hidden)

    def forward(self, vector: Tensor) -> tuple[Tensor, ...]:
        """vector [B, N or 1, hidden] -> six of the same shape: shift, scale, gate, shift, scale, gate."""
        return self.linear(F.silu(vector)).chunk(6, dim=-1)


class Mlp(nn.Module):
    """Two linears around the tanh form of GELU."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden, inner)
        self.fc2 = nn.Linear(inner, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [..., hidden] -> [..., hidden]."""
        return self.fc2(F.gelu(self.fc1(tokens), approximate="tanh"))


def modulate(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`tokens * (1 + scale) + shift`."""
    return tokens * (1 + scale) + shift


def _plain_norm(hidden: int) -> nn.LayerNorm:
    return nn.LayerNorm(hidden, eps=1e-6, elementwise_affine=False)


class DoubleBlock(nn.Module):
    """One of the blocks: text and vision halves with their own weights, joined in the vision attention."""

    def __init__(self, config: WorldPlayConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.mlp_ratio * config.hidden_size
        self.heads = config.heads
        self.img_mod = Modulation(hidden)
        self.img_norm1 = _plain_norm(hidden)
        self.img_attn_q = nn.Linear(hidden, hidden)
        self.img_attn_k = nn.Linear(hidden, hidden)
        self.img_attn_v = nn.Linear(hidden, hidden)
        self.img_attn_q_norm = RMSNorm(config.head_dim)
        self.img_attn_k_norm = RMSNorm(config.head_dim)
        self.img_attn_proj = nn.Linear(hidden, hidden)
        self.img_attn_prope_proj = nn.Linear(hidden, hidden)
        self.img_norm2 = _plain_norm(hidden)
        self.img_mlp = Mlp(hidden, inner)
        self.txt_mod = Modulation(hidden)
        self.txt_norm1 = _plain_norm(hidden)
        self.txt_attn_q = nn.Linear(hidden, hidden)
        self.txt_attn_k = nn.Linear(hidden, hidden)
        self.txt_attn_v = nn.Linear(hidden, hidden)
        self.txt_attn_q_norm = RMSNorm(config.head_dim)
        self.txt_attn_k_norm = RMSNorm(config.head_dim)
        self.txt_attn_proj = nn.Linear(hidden, hidden)
        self.txt_norm2 = _plain_norm(hidden)
        self.txt_mlp = Mlp(hidden, inner)
        nn.init.zeros_(self.img_attn_prope_proj.weight)
        nn.init.zeros_(self.img_attn_prope_proj.bias)

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1))

    def text(self, tokens: Tensor, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The text half: tokens [B, L, hidden], vector [B, 1, hidden] -> tokens, their keys, their values.

        Text attends to text alone, so one evaluation a prompt serves the whole rollout.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.txt_mod(vector)
        inner = modulate(self.txt_norm1(tokens), shift1, scale1)
        query = self.txt_attn_q_norm(self._split(self.txt_attn_q(inner))).transpose(1, 2)
        key = self.txt_attn_k_norm(self._split(self.txt_attn_k(inner))).transpose(1, 2)
        value = self._split(self.txt_attn_v(inner)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + gate1 * self.txt_attn_proj(attended)
        tokens = tokens + gate2 * self.txt_mlp(modulate(self.txt_norm2(tokens), shift2, scale2))
        return tokens, key, value

    def forward(
        self, tokens: Tensor, conditions: TokenConditions, text: KeyValue, context: KeyValue | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The vision half: tokens [B, N, hidden] -> tokens, their own keys and values [2B, heads, N, head_dim].

        Batch row 0 of keys and values is the RoPE branch, row 1 the PRoPE branch. Keys are ordered text, context,
        current. `context` is what an earlier pass returned for this block.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.img_mod(conditions.vector)
        inner = modulate(self.img_norm1(tokens), shift1, scale1)
        query = self.img_attn_q_norm(self._split(self.img_attn_q(inner))).transpose(1, 2)
        key = self.img_attn_k_norm(self._split(self.img_attn_k(inner))).transpose(1, 2)
        value = self._split(self.img_attn_v(inner)).transpose(1, 2)

        projection, inverse = projection_matrices(conditions.extrinsics, conditions.intrinsics)
        query = torch.cat(
            [apply_rope(query, conditions.rope), apply_matrix(query, projection.transpose(-1, -2))], dim=0
        )
        key = torch.cat([apply_rope(key, conditions.rope), apply_matrix(key, inverse)], dim=0)
        value = torch.cat([value, apply_matrix(value, inverse)], dim=0)

        attended = _attend(query, text, context, KeyValue(key, value))
        rope, prope = attended.chunk(2, dim=0)
        rope = self.img_attn_proj(rope.transpose(1, 2).flatten(2))
        prope = self.img_attn_prope_proj(apply_matrix(prope, projection).transpose(1, 2).flatten(2))
        tokens = tokens + gate1 * (rope + prope)
        tokens = tokens + gate2 * self.img_mlp(modulate(self.img_norm2(tokens), shift2, scale2))
        return tokens, key, value


def _attend(query: Tensor, text: KeyValue, context: KeyValue | None, current: KeyValue) -> Tensor:
    spans = [KeyValue(text.key.repeat(2, 1, 1, 1), text.value.repeat(2, 1, 1, 1))]
    spans += [] if context is None else [context]
    spans.append(current)
    key = torch.cat([span.key for span in spans], dim=2)
    value = torch.cat([span.value for span in spans], dim=2)
    return F.scaled_dot_product_attention(query, key, value)


class FinalLayer(nn.Module):
    """Tokens to the channels of a patch, modulated by shift and scale."""

    def __init__(self, config: WorldPlayConfig) -> None:
        super().__init__()
        hidden, patch = config.hidden_size, config.patch_size
        self.norm_final = _plain_norm(hidden)
        self.linear = nn.Linear(hidden, patch[1] * patch[2] * config.out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))

    def forward(self, tokens: Tensor, vector: Tensor) -> Tensor:
        """tokens and vector [B, N, hidden] -> [B, N, out_channels * patch area]."""
        shift, scale = self.adaLN_modulation(vector).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(tokens), shift, scale))
