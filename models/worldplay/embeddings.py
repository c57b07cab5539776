"""What enters the blocks: patches, timesteps, action labels, glyph and vision tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..dtypes import wide
from .config import WorldPlayConfig

_FREQUENCIES = 128
_MAX_PERIOD = 1e4


def sinusoid(values: Tensor) -> Tensor:
    """The 256-wide embedding `[cos(t f), sin(t f)]`, f_j = 1e4^(-j/128), of values of any shape; cosine comes first."""
    steps = torch.arange(_FREQUENCIES, device=values.device, dtype=values.dtype)
    angles = values[..., None] * torch.exp(steps * (-math.log(_MAX_PERIOD) / _FREQUENCIES))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ScalarEmbedder(nn.Module):
    """A timestep, or an action label treated as one, to a `hidden`-wide vector (`time_in`, `action_in`)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * _FREQUENCIES, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, values: Tensor) -> Tensor:
        """values [...] float -> [..., hidden] in the weights' dtype; the sinusoid is at least float32."""
        dtype = next(self.mlp.parameters()).dtype
        return self.mlp(sinusoid(values.to(wide(dtype))).to(dtype))


class PatchEmbed(nn.Module):
    """Channels of a patch to a token; at the released 1x1x1 patch this is a Linear written as a Conv3d."""

    def __init__(self, config: WorldPlayConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.proj = nn.Conv3d(config.input_channels, config.hidden_size, kernel_size=patch, stride=patch)

    def forward(self, latents: Tensor) -> Tensor:
        """latents [B, C, T, h, w] -> tokens [B, T*S1, hidden] in (t, h, w) order."""
        return self.proj(latents).flatten(2).transpose(1, 2)


class GlyphMapper(nn.Module):
    """byT5 features of quoted text to the model's width (`byt5_in`)."""

    def __init__(self, config: WorldPlayConfig) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(config.glyph_dim)
        self.fc1 = nn.Linear(config.glyph_dim, config.glyph_hidden)
        self.fc2 = nn.Linear(config.glyph_hidden, config.glyph_hidden)
        self.fc3 = nn.Linear(config.glyph_hidden, config.hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """features [B, tokens, glyph_dim] -> [B, tokens, hidden]."""
        inner = F.gelu(self.fc1(self.layernorm(features)))
        return self.fc3(F.gelu(self.fc2(inner)))


class VisionMapper(nn.Module):
    """SigLIP tokens of the first image to the model's width (`vision_in`)."""

    def __init__(self, config: WorldPlayConfig) -> None:
        super().__init__()
        width = config.vision_dim
        self.proj = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, config.hidden_size),
            nn.LayerNorm(config.hidden_size),
        )

    def forward(self, features: Tensor) -> Tensor:
        """features [B, tokens, vision_dim] -> [B, tokens, hidden]."""
        return self.proj(features)
