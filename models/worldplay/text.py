"""The language branch in front of the blocks: project the LLM features and refine them with two small blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import WorldPlayConfig
from .embeddings import ScalarEmbedder


class PooledTextEmbedder(nn.Module):
    """The mean of the valid LLM features to a conditioning vector (`c_embedder`)."""

    def __init__(self, config: WorldPlayConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(config.text_dim, config.hidden_size)
        self.linear_2 = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, pooled: Tensor) -> Tensor:
        """pooled [B, text_dim] -> [B, hidden]."""
        return self.linear_2(F.silu(self.linear_1(pooled)))


class RefinerMlp(nn.Module):
    """Two linears around SiLU."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden, inner)
        self.fc2 = nn.Linear(inner, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [..., hidden] -> [..., hidden]."""
        return self.fc2(F.silu(self.fc1(tokens)))


class RefinerBlock(nn.Module):
    """Gated self-attention and MLP over text tokens, without positions and without QK norm."""

    def __init__(self, config: WorldPlayConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(hidden, eps=1e-6)
        self.self_attn_qkv = nn.Linear(hidden, 3 * hidden)
        self.self_attn_proj = nn.Linear(hidden, hidden)
        self.norm2 = nn.LayerNorm(hidden, eps=1e-6)
        self.mlp = RefinerMlp(hidden, config.mlp_ratio * hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """tokens [B, L, hidden], condition [B, hidden] -> [B, L, hidden]."""
        gate_attention, gate_mlp = self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        tokens = tokens + gate_attention * self.self_attn_proj(self._attend(self.norm1(tokens)))
        return tokens + gate_mlp * self.mlp(self.norm2(tokens))

    def _attend(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            self.self_attn_qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        )
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class TokenRefiner(nn.Module):
    """The stack of refiner blocks, under the name the checkpoint gives it."""

    def __init__(self, config: WorldPlayConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([RefinerBlock(config) for _ in range(config.refiner_depth)])

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """tokens [B, L, hidden], condition [B, hidden] -> [B, L, hidden]."""
        for block in self.blocks:
            tokens = block(tokens, condition)
        return tokens


class TextEmbedder(nn.Module):
    """LLM features to text tokens (`txt_in`).

    Padding must already be dropped: a padded row has no valid key in the refiner and would turn into NaN, and for
    valid tokens dropping is exactly equal to masking.
    """

    def __init__(self, config: WorldPlayConfig) -> None:
        super().__init__()
        self.input_embedder = nn.Linear(config.text_dim, config.hidden_size)
        self.t_embedder = ScalarEmbedder(config.hidden_size)
        self.c_embedder = PooledTextEmbedder(config)
        self.individual_token_refiner = TokenRefiner(config)

    def forward(self, features: Tensor) -> Tensor:
        """features [B, L, text_dim] -> [B, L, hidden]; the timestep of text is 0."""
        timestep = torch.zeros(features.shape[0], device=features.device)
        condition = self.t_embedder(timestep) + self.c_embedder(features.mean(dim=1))
        return self.individual_token_refiner(self.input_embedder(features), condition)
