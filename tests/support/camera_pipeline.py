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
        kv_cache: list[dict[str, Tensor]] | None,
        ar_vision_inference: bool = True,
        cache_vision: bool = False,
        rope_temporal_size: int = 0,
        start_rope_start_idx: int = 0,
    ) -> Any:
        batch, _, frames, height, width = hidden_states.shape
        x = self.patch(hidden_states).flatten(2).transpose(1, 2)
        places = torch.linspace(0, rope_temporal_size, rope_temporal_size + 1)[:rope_temporal_size]
        places = places[start_rope_start_idx : start_rope_start_idx + frames]
        seen = self.camera(viewmats.flatten(2)) + 0.001 * (timestep + places)[None, :, None]
        q, k, v = self.qkv(x + seen.repeat_interleave(height * width, 1)).unflatten(-1, (3, 1, WIDTH)).unbind(2)
        if cache_vision:
            return [{"k_vision": k.transpose(1, 2), "v_vision": v.transpose(1, 2)}]
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        if kv_cache is not None:
            k, v = torch.cat([kv_cache[0]["k_vision"], k], 2), torch.cat([kv_cache[0]["v_vision"], v], 2)
        x = x + attend(q, k, v).transpose(1, 2).flatten(2)
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
        cache, chosen, self.contexts = None, [], []
        for first in range(0, latents.shape[2], CHUNK):
            coming = slice(first, first + CHUNK)
            if first:
                chosen = select_aligned_memory_frames(viewmats[0].numpy(), first, memory_frames=20)
                self.contexts.append(chosen)
                cache = self.transformer(
                    hidden_states=latents[:, :, chosen],
                    timestep=torch.full((len(chosen),), 14.0),
                    viewmats=viewmats[:, chosen],
                    kv_cache=None,
                    ar_vision_inference=True,
                    cache_vision=True,
                    rope_temporal_size=len(chosen),
                )
            for step, time in enumerate(timesteps):
                now = latents[:, :, coming].clone(), torch.full((CHUNK,), float(time))
                velocity = self._velocity(*now, viewmats[:, coming], cache, len(chosen))
                change = self.scheduler.sigmas[step + 1] - self.scheduler.sigmas[step]
                latents[:, :, coming] = latents[:, :, coming] + change * velocity
        return latents

    def _velocity(self, latents: Tensor, time: Tensor, cameras: Tensor, cache: Any, past: int) -> Tensor:
        def computed(viewmats: Tensor) -> Tensor:
            result: Tensor = self.transformer(
                hidden_states=latents,
                timestep=time,
                viewmats=viewmats,
                kv_cache=cache,
                ar_vision_inference=True,
                rope_temporal_size=past + CHUNK,
                start_rope_start_idx=past,
            )[0]
            return result

        found = computed(cameras)
        if self.do_classifier_free_guidance:
            without = computed(0 * cameras)
            found = without + 2 * (found - without)
        return found
