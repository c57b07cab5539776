"""A small world model: selects context, prefills it, denoises in unrolled Euler steps. It traces in seconds."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

CHUNK = 4


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor, time: Tensor, context: tuple[Tensor, Tensor] | None):
        query, key, value = self.qkv(self.norm(tokens) + time).chunk(3, -1)
        kept = (key, value)
        if context is not None:
            key, value = torch.cat([context[0], key], 1), torch.cat([context[1], value], 1)
        seen = scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]
        tokens = tokens + self.out(seen)
        return tokens + self.mlp(self.norm(tokens)), kept


class ToyWorld(nn.Module):
    """`steps` Euler steps over `depth` blocks; context of at most `memory` frames: the first four and the newest."""

    def __init__(self, width: int = 16, depth: int = 2, steps: int = 4, memory: int = 20):
        super().__init__()
        self.memory, self.steps, self.width = memory, steps, width
        self.embed = nn.Conv3d(4, width, (1, 2, 2), (1, 2, 2))
        self.pose = nn.Linear(16, width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.head = nn.Linear(width, 16)
        self.sigmas = [1.0, 0.9375, 0.8333, 0.625, 0.0] if steps == 4 else [1 - k / steps for k in range(steps + 1)]

    def forward(self, noise: Tensor, history: Tensor | None, extrinsics: Tensor) -> Tensor:
        context = None
        if history is not None:
            chosen = self.select(extrinsics, history.shape[2])
            context = self.prefill(history.index_select(2, chosen), extrinsics.index_select(1, chosen), chosen.shape[0])
        for step in range(self.steps):
            velocity = self.predict(noise, extrinsics[:, -CHUNK:], self.sigmas[step], context)
            noise = noise + velocity * (self.sigmas[step + 1] - self.sigmas[step])
        return noise

    def select(self, extrinsics: Tensor, frames: int) -> Tensor:
        # Dynamo of torch 2.11 ends a graph at a sym_min of two plain numbers
        count = min(frames, self.memory) if isinstance(frames, int) else torch.sym_min(frames, self.memory)
        slot = torch.arange(count, device=extrinsics.device)
        near = (extrinsics[0, -1, :3, 3] - extrinsics[0, 0, :3, 3]).abs().sum() < 1e6
        return torch.where((slot < 4) & near, slot, slot + (frames - count))

    def prefill(self, latents: Tensor, cameras: Tensor, frames: int) -> list[tuple[Tensor, Tensor]]:
        time = torch.full((1, frames), 0.1, device=latents.device, dtype=latents.dtype).sum(1)[:, None, None] / frames
        tokens, cache = self.tokens(latents, cameras), []
        for block in self.blocks:
            tokens, kept = block(tokens, time, None)
            cache.append(kept)
        return cache

    def predict(self, latents: Tensor, cameras: Tensor, sigma: float, context) -> Tensor:
        tokens = self.tokens(latents, cameras)
        time = torch.full((1, 1, 1), sigma, device=latents.device, dtype=latents.dtype)
        for index, block in enumerate(self.blocks):
            tokens, _ = block(tokens, time, None if context is None else context[index])
        batch, _, frames, height, width = latents.shape
        patches = self.head(tokens).reshape(batch, frames, height // 2, width // 2, 4, 2, 2)
        return patches.permute(0, 4, 1, 2, 5, 3, 6).reshape(latents.shape)

    def tokens(self, latents: Tensor, cameras: Tensor) -> Tensor:
        embedded = self.embed(latents)
        per_frame = embedded.shape[3] * embedded.shape[4]
        pose = self.pose(cameras.flatten(2)).repeat_interleave(per_frame, 1)
        return embedded.flatten(2).transpose(1, 2) + pose


def walk(frames: int, turn: float = 3.0, step: float = 0.08) -> Tensor:
    """World-to-camera [1, frames, 4, 4] of a camera that turns `turn` degrees and walks `step` a frame."""
    angle = torch.deg2rad(torch.arange(frames) * turn)
    cameras = torch.eye(4).repeat(frames, 1, 1)
    cameras[:, 0, 0] = cameras[:, 2, 2] = angle.cos()
    cameras[:, 0, 2], cameras[:, 2, 0] = -angle.sin(), angle.sin()
    cameras[:, 2, 3] = -step * torch.arange(frames)
    return cameras[None]


def there_and_back(frames: int, turn: float = 8.0) -> Tensor:
    """A camera that turns away for half of the frames and back for the other half: [1, frames, 4, 4]."""
    away = walk(frames // 2, turn, 0.0)
    return torch.cat([away, away.flip(1)], 1)


def toy_rollout(model, cameras: Tensor, size: tuple[int, int] = (4, 6), seed: int = 0) -> list[Tensor]:
    """Latents chunk by chunk, frame axes marked dynamic as a rollout loop does."""
    batch, frames = cameras.shape[:2]
    noise = torch.randn(batch, 4, frames, *size, generator=torch.Generator().manual_seed(seed))
    history, chunks = None, []
    for first in range(0, frames, CHUNK):
        seen = cameras[:, : first + CHUNK].contiguous()
        if history is not None:
            torch._dynamo.mark_dynamic(history, 2)
            torch._dynamo.mark_dynamic(seen, 1)
        with torch.no_grad():
            chunks.append(model(noise[:, :, first : first + CHUNK].contiguous(), history, seen))
        history = torch.cat([history, chunks[-1]], 2) if history is not None else chunks[-1].clone()
    return chunks
