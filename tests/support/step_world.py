"""A transformer that predicts one denoising step, and the loop of chunks around it, as a pipeline has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from toy_world import CHUNK, Block, there_and_back

SIGMAS = (1.0, 0.9375, 0.8333, 0.625, 0.0)
FRAMES = 48
SEEN = 7
"""The first chunk of :func:`~toy_world.there_and_back` whose views were seen before."""


class StepWorld(nn.Module):
    """One step: velocity of latents [B, 4, F, h, w] at a timestep [B], for cameras [B, F, 4, 4] and text [B, n, 8]."""

    def __init__(self, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Conv3d(4, width, (1, 2, 2), (1, 2, 2))
        self.pose, self.text, self.time = nn.Linear(16, width), nn.Linear(8, width), nn.Linear(8, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 16)

    def forward(self, latents: Tensor, timestep: Tensor, extrinsics: Tensor, text: Tensor) -> Any:
        tokens, time = self.tokens(latents, extrinsics), self.told(timestep, text)
        for block in self.blocks:
            tokens, _ = block(tokens, time, None)
        return self.finished(tokens, latents)

    def tokens(self, latents: Tensor, extrinsics: Tensor) -> Tensor:
        embedded = self.embed(latents)
        per_frame = embedded.shape[3] * embedded.shape[4]
        pose = self.pose(extrinsics.flatten(2)).repeat_interleave(per_frame, 1)
        return embedded.flatten(2).transpose(1, 2) + pose

    def told(self, timestep: Tensor, text: Tensor) -> Tensor:
        angles = timestep[:, None] * torch.exp(-torch.arange(4, device=text.device, dtype=text.dtype)) / 100
        time = self.time(torch.cat([angles.cos(), angles.sin()], -1))[:, None]
        return time + self.text(text).mean(1, keepdim=True)

    def finished(self, tokens: Tensor, latents: Tensor) -> Any:
        batch, _, frames, height, width = latents.shape
        patches = self.head(tokens).reshape(batch, frames, height // 2, width // 2, 4, 2, 2)
        return patches.permute(0, 4, 1, 2, 5, 3, 6).reshape(latents.shape)


class Rollout:
    """Walks chunks beside the exact module, and says which steps were computed.

    Attributes:
        text: the prompt of every call, unless one is given.
        results: what the last chunk's steps gave.
    """

    def __init__(self, compiled: Callable[..., Tensor], exact: nn.Module | None, cameras: Tensor | None = None) -> None:
        self.compiled, self.exact = compiled, exact
        self.cameras = there_and_back(FRAMES) if cameras is None else cameras
        self.draw = torch.Generator().manual_seed(0)
        self.text = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(3))
        self.results: list[Tensor] = []

    def walk(self, chunks: int = SEEN) -> Rollout:
        """The first chunks, in which there is nothing to come back to."""
        exact, self.exact = self.exact, None
        for number in range(chunks):
            self.chunk(number)
        self.exact = exact
        return self

    @torch.no_grad()
    def chunk(
        self, number: int, before: Callable[[int], None] | None = None, texts: tuple[Tensor, ...] = ()
    ) -> list[bool]:
        """Whether each call of a chunk computed; ``before`` is called in front of each step, all texts in each step."""
        latents = torch.randn(self.cameras.shape[0], 4, CHUNK, 4, 6, generator=self.draw)
        self.results, computed = [], []
        for step, sigma in enumerate(SIGMAS[:-1]):
            if before is not None:
                before(step)
            for text in texts or (self.text,):
                velocity, same = self.call(latents, 1000 * sigma, self.views(number), text)
                computed.append(same)
                self.results.append(velocity)
            latents = latents + velocity * (SIGMAS[step + 1] - sigma)
        return computed

    def views(self, number: int) -> Tensor:
        return self.cameras[:, number * CHUNK : (number + 1) * CHUNK]

    @torch.no_grad()
    def call(self, latents: Tensor, time: float, cameras: Tensor, text: Tensor) -> tuple[Tensor, bool]:
        """One call, and whether it gave what the module gives."""
        given = latents, torch.full((latents.shape[0],), time), cameras, text
        got = self.compiled(*given)
        return got, self.exact is None or torch.allclose(got, self.exact(*given), rtol=1e-5, atol=1e-6)
