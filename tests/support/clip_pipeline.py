"""A pipeline that makes clip after clip as Matrix-Game-3's does: known frames, remembered ones, three steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS, WIDTH, SIDE, TOKENS = 4, 16, 2, 4
FIRST, LATER, KNOWN, NEW, MEMORY = 15, 14, 4, 10, 5
"""Latent frames of the first clip and of others, of which some are known and others new; remembered ones."""


class Model(nn.Module):
    """Velocities [1, C, F, h, w] of a clip; sizes travel in a tensor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.rays, self.act = nn.Conv3d(CHANNELS, WIDTH, 1), nn.Conv3d(6, WIDTH, 1), nn.Linear(2, WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, CHANNELS)
        self.eval().requires_grad_(False)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        seq_len: int,
        mouse_cond: Tensor,
        plucker_emb: Tensor,
        x_memory: Tensor | None = None,
        timestep_memory: Tensor | None = None,
        mouse_cond_memory: Tensor | None = None,
        keyboard_cond_memory: Tensor | None = None,
        memory_latent_idx: list[int] | Tensor | None = None,
        predict_latent_idx: tuple[int, int] = (0, 0),
    ) -> Tensor:
        numbers, remembered = torch.tensor(list(range(*predict_latent_idx))), 0
        if x_memory is not None:
            assert timestep_memory is not None and mouse_cond_memory is not None and memory_latent_idx is not None
            remembered, x = x_memory.shape[2], torch.cat([x_memory, x], 2)
            t = torch.cat([timestep_memory, t], 1)
            mouse_cond = torch.cat([mouse_cond_memory, mouse_cond], 1)
            numbers = torch.cat([torch.as_tensor(memory_latent_idx), numbers])
        grid = torch.tensor(x.shape[2:], dtype=torch.long)
        area = grid[1] * grid[2]
        places = numbers.repeat_interleave(TOKENS)[None, :, None]
        tokens = (self.patch(x) + self.rays(plucker_emb)).flatten(2).transpose(1, 2)
        if grid.prod() <= seq_len:
            tokens = tokens + 0.001 * (t[..., None] + places) + self.act(mouse_cond).repeat_interleave(TOKENS, 1)
        query, key, value = self.qkv(tokens).unflatten(-1, (3, 1, WIDTH)).transpose(1, 3).unbind(2)
        tokens = tokens + F.scaled_dot_product_attention(query, key, value)[:, 0]
        made = self.out(tokens)[:, remembered * area :].transpose(1, 2)
        return made.reshape(1, CHANNELS, -1, *x.shape[3:])


def select_memory_idx_fov(
    extrinsics_all: Any, current_start_frame_idx: int, selected_index_base: list[int], use_gpu: bool = False
) -> list[int]:
    """The pipeline's own choice: frames of the video, evenly through the past."""
    step = (current_start_frame_idx - 1) // len(selected_index_base)
    return [1 + step * place for place in range(len(selected_index_base))]


class ClipPipeline:
    """Rolls out along camera-to-world ``poses`` [V, 4, 4], one a frame of the video."""

    def __init__(self, poses: Tensor) -> None:
        self.model, self.poses = Model(), poses
        self.vae = SimpleNamespace(decoder=None)

    def generate(self, text: str, num_inference_steps: int = 40, use_base_model: bool = False) -> Tensor:
        draw, made = torch.Generator().manual_seed(2), list[Tensor]()
        seen = torch.randn(1, CHANNELS, 1, SIDE, SIDE, generator=draw)
        clips = 1 + (len(self.poses) - 57) // 40
        for clip in range(clips):
            end = 57 + 40 * clip
            start = end - 56 if clip else 0
            given = self._given(draw, torch.cat(made, 2) if clip else None, start, end)
            first, last = given["predict_latent_idx"]
            noise = torch.randn(1, CHANNELS, last - first, SIDE, SIDE, generator=draw)
            latents = torch.cat([seen, noise[:, :, seen.shape[2] :]], 2)
            for step in range(num_inference_steps):
                level = 1 - step / num_inference_steps
                velocity = self._velocity(latents, level, seen.shape[2], given, guided=use_base_model)
                latents = latents - velocity / num_inference_steps
                latents = torch.cat([seen, latents[:, :, seen.shape[2] :]], 2)
            seen = latents[:, :, -KNOWN:]
            made.append(latents[:, :, -NEW:] if clip else latents)
        return torch.cat(made, 2)

    def _given(self, draw: torch.Generator, past: Tensor | None, start: int, end: int) -> dict[str, Any]:
        first, last = ((frame - 1) // 4 + 1 if frame > 0 else 0 for frame in (start, end))
        frames = last - first
        rays = torch.randn(1, 6, frames, SIDE, SIDE, generator=draw)
        given = {"mouse_cond": torch.randn(1, frames, 2, generator=draw), "predict_latent_idx": (first, last)}
        if past is None:
            return {**given, "plucker_emb": rays}
        asking = [end - back for back in range(1, 34, 8)]
        chosen = select_memory_idx_fov(self.poses, start, asking, use_gpu=True)
        chosen[-1] = 4
        frames_asked = [(frame - 1) // 4 + 1 for frame in chosen]
        return {
            **given,
            "plucker_emb": torch.cat([torch.randn(1, 6, MEMORY, SIDE, SIDE, generator=draw), rays], 2),
            "x_memory": past[:, :, frames_asked],
            "timestep_memory": torch.zeros(1, MEMORY * TOKENS),
            "mouse_cond_memory": torch.ones(1, MEMORY, 2),
            "keyboard_cond_memory": -torch.ones(1, MEMORY, 6),
            "memory_latent_idx": frames_asked,
        }

    def _velocity(self, latents: Tensor, level: float, known: int, given: dict[str, Any], *, guided: bool) -> Tensor:
        times = latents.new_full((latents.shape[2], TOKENS), 1000 * level)
        times[:known].zero_()
        now = {"x": latents, "t": times.flatten()[None], "seq_len": 20 * TOKENS}
        found: Tensor = self.model(**now, **given)
        if guided:
            alone = {name: given[name] for name in ("mouse_cond", "predict_latent_idx")}
            rays = given["plucker_emb"][:, :, -latents.shape[2] :]
            without = self.model(**now, **alone, plucker_emb=rays)
            found = without + 2 * (found - without)
        return found
