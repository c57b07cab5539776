"""The transformer: velocity of a clip's latents, given memory, cameras, actions and text."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..dtypes import wide
from .blocks import Block, Conditions, Head
from .config import RAY_CHANNELS, MatrixGameConfig
from .layers import WideLinear, unpatchify
from .positions import sinusoid


class MatrixGameTransformer(nn.Module):
    """Matrix-Game-3.0's network; the keys of its state dict are the released checkpoint's."""

    def __init__(self, config: MatrixGameConfig) -> None:
        super().__init__()
        self.config = config
        hidden, patch = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv3d(config.in_channels, hidden, kernel_size=patch, stride=patch)
        self.patch_embedding_wancamctrl = nn.Linear(RAY_CHANNELS * patch[1] * patch[2], hidden)
        self.c2ws_hidden_states_layer1 = nn.Linear(hidden, hidden)
        self.c2ws_hidden_states_layer2 = nn.Linear(hidden, hidden)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, hidden)
        )
        self.time_embedding = nn.Sequential(
            WideLinear(config.frequencies, hidden), nn.SiLU(), WideLinear(hidden, hidden)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), WideLinear(hidden, 6 * hidden))
        self.blocks = nn.ModuleList([Block(config, index < config.action_blocks) for index in range(config.depth)])
        self.head = Head(config)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        cameras: Tensor,
        mouse: Tensor,
        keyboard: Tensor,
        frames: Tensor,
        memory: Tensor | None = None,
    ) -> Tensor:
        """Flow velocity [B, out_channels, F, h, w] of the clip, in float32 or wider.

        Args:
            latents: [B, C, F, h, w], the clip's.
            timestep: [B, F*S1], one a token; 0 where a latent is clean.
            text: [B, n, text_dim] features, n at most `text_length`; padded with zeros, and padding is attended to.
            cameras: [B, 1536, M + F, h, w], maps of rays, memory first.
            mouse: [B, V, 2] of the clip's video frames, up-down and left-right.
            keyboard: [B, V, 6].
            frames: [M + F], indices in the video, memory first.
            memory: [B, C, M, h, w], clean latents from before, or None.
        """
        recalled = 0 if memory is None else memory.shape[2]
        if memory is not None:
            latents = torch.cat([memory, latents], dim=2)
            timestep = F.pad(timestep, (recalled * self.config.tokens_per_frame, 0))
        tokens = self._padded(self.patch_embedding(latents).flatten(2).transpose(1, 2))
        padded = F.pad(timestep, (0, self.config.sequence - timestep.shape[1]))
        dtype = wide(self.patch_embedding.weight.dtype)
        time = self.time_embedding(sinusoid(padded, self.config.frequencies, dtype))
        conditions = Conditions(
            modulation=self.time_projection(time).unflatten(2, (6, -1)),
            cameras=self._cameras(cameras),
            text=self.text_embedding(F.pad(text, (0, 0, 0, self.config.text_length - text.shape[1]))),
            frames=frames,
            memory=recalled,
            mouse=mouse,
            keyboard=keyboard,
        )
        for block in self.blocks:
            tokens = block(tokens, conditions)
        return unpatchify(self.config, self.head(tokens, time), frames.shape[0])[:, :, recalled:]

    def _padded(self, tokens: Tensor) -> Tensor:
        """tokens [B, n, C] with zeros behind, up to the length of every call."""
        return F.pad(tokens, (0, 0, 0, self.config.sequence - tokens.shape[1]))

    def _cameras(self, cameras: Tensor) -> Tensor:
        """Maps of rays [B, 1536, T, h, w] -> [B, N, hidden]."""
        _, height, width = self.config.patch_size
        patches = cameras.unflatten(4, (-1, width)).unflatten(3, (-1, height)).permute(0, 2, 3, 5, 1, 4, 6)
        tokens = self.patch_embedding_wancamctrl(self._padded(patches.flatten(4).flatten(1, 3)))
        return tokens + self.c2ws_hidden_states_layer2(F.silu(self.c2ws_hidden_states_layer1(tokens)))
