"""A pipeline that rolls out along cameras as HY-WorldPlay's does: chunks, context by views, K/V caches, Euler steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS, WIDTH, CHUNK, STEPS = 4, 16, 4, 4


@torch.compiler.disable
def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.camera = nn.Conv3d(CHANNELS, WIDTH, 1), nn.Linear(16, WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, CHANNELS)
        self.eval().requires_grad_(False)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        viewmats: Tensor,
        kv_cache: tuple[Tensor, Tensor] | None,
        ar_vision_inference: bool = True,
        cache_vision: bool = False,
    ) -> Any:
        batch, _, frames, height, width = hidden_states.shape
        x = self.patch(hidden_states).flatten(2).transpose(1, 2)
        seen = self.camera(viewmats.flatten(2)) + 0.001 * timestep[None, :, None]
        q, k, v = self.qkv(x + seen.repeat_interleave(height * width, 1)).unflatten(-1, (3, 1, WIDTH)).unbind(2)
        if cache_vision:
            return k, v
        if kv_cache is not None:
            k, v = torch.cat([kv_cache[0], k], 1), torch.cat([kv_cache[1], v], 1)
        x = x + attend(*(each.transpose(1, 2) for each in (q, k, v))).transpose(1, 2).flatten(2)
        return self.out(x).transpose(1, 2).reshape(batch, CHANNELS, frames, height, width), None


def select_aligned_memory_frames(cameras: Any, first: int, memory_frames: int) -> list[int]:
    """The pipeline's own choice: the newest frames."""
    return list(range(max(first - memory_frames, 0), first))


class CameraPipeline:
    chunk_latent_frames = CHUNK

    def __init__(self, *, guidance: bool = False) -> None:
        self.transformer = Transformer()
        self.scheduler = SimpleNamespace(sigmas=torch.linspace(1, 0, STEPS + 1))
        self.do_classifier_free_guidance = guidance
        self.contexts: list[list[int]] = []

    def __call__(self, latents: Tensor, viewmats: Tensor, Ks: Tensor) -> Tensor:
        timesteps = 1000 * self.scheduler.sigmas[:-1]
        return self.ar_rollout(latents.clone(), timesteps, viewmats=viewmats, Ks=Ks)

    def ar_rollout(self, latents: Tensor, timesteps: Tensor, viewmats: Tensor, Ks: Tensor) -> Tensor:
        cache, self.contexts = None, []
        for first in range(0, latents.shape[2], CHUNK):
            coming = slice(first, first + CHUNK)
            if first:
                chosen = select_aligned_memory_frames(viewmats[0].numpy(), first, memory_frames=20)
                self.contexts.append(chosen)
                known = latents[:, :, chosen], torch.full((len(chosen),), 14.0), viewmats[:, chosen].clone()
                cache = self.transformer(*known, None, ar_vision_inference=True, cache_vision=True)
            for step, time in enumerate(timesteps):
                given = latents[:, :, coming].clone(), torch.full((CHUNK,), float(time)), viewmats[:, coming].clone()
                velocity = self._velocity(*given, cache)
                change = self.scheduler.sigmas[step + 1] - self.scheduler.sigmas[step]
                latents[:, :, coming] = latents[:, :, coming] + change * velocity
        return latents

    def _velocity(self, latents: Tensor, time: Tensor, cameras: Tensor, cache: Any) -> Tensor:
        found: Tensor = self.transformer(latents, time, cameras, cache, ar_vision_inference=True)[0]
        if self.do_classifier_free_guidance:
            without = self.transformer(latents, time, 0 * cameras, cache, ar_vision_inference=True)[0]
            found = without + 2 * (found - without)
        return found
