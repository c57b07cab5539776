"""Models that denoise clip after clip, single frames of what was made before in front of each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import stubs
import torch
from case import FRAME, WIDTH, Case
from causal_wan import family, sizes
from torch import Tensor, nn

FIRST, LATER, KNOWN, MEMORY = 15, 14, 4, 5
"""Latent frames of the first clip, and of a later one, the first of which are known; remembered ones before it."""

CHANNELS, CLIPS, STEPS = 4, 4, 3


def _matrix_game_3() -> Case:
    """Steered by keys and the mouse; its blocks read the camera, and their attention the frames' own numbers."""

    def build(root: Path) -> nn.Module:
        torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment]  # where its tables of positions are made
        packages = {"wan": "wan", "wan.modules": "wan/modules", "wan.utils": "wan/utils"}
        code = family(root, {**packages, "wan.distributed": "wan/distributed"}, "wan.modules.attention", _MODEL)
        inner = {"hidden_size": 16, "img_hidden_size": WIDTH, "keyboard_hidden_dim": 64, "mouse_hidden_dim": 64}
        rope = {"rope_dim_list": [8, 12, 12], "mouse_qk_dim_list": [8, 12, 12], "patch_size": [1, 2, 2]}
        actions = {**inner, **rope, "mouse_dim_in": 2, "keyboard_dim_in": 6, "heads_num": 2, "blocks": [0]}
        form = {"model_type": "ti2v", "action_config": actions, "use_memory": True, "sigma_theta": 0.8}
        model = code.WanModel(**sizes(**form, cross_attn_norm=True, num_layers=2))
        for block in model.blocks:  # given bfloat16 whatever the model computes in
            block.cross_attn.bfloat16()
        return stubs.filled(model)

    def roll(call: Callable[..., Any]) -> list[Tensor]:
        solver = importlib.import_module("wan.utils.fm_solvers_unipc").FlowUniPCMultistepScheduler
        draw, made = torch.Generator().manual_seed(1), []
        seen, text = torch.randn(1, CHANNELS, 1, 16, 16, generator=draw), [torch.randn(5, 16, generator=draw)]
        for clip in range(CLIPS):
            frames, remembers = (LATER, MEMORY) if clip else (FIRST, 0)
            actions = 4 * frames if clip else 4 * frames - 3
            noise = torch.randn(1, CHANNELS, frames, 16, 16, generator=draw)
            given: dict[str, Any] = {
                "mouse_cond": 0.1 * torch.randn(1, actions, 2, generator=draw),
                "keyboard_cond": (torch.randn(1, actions, 6, generator=draw) > 0).float(),
                "context": text,
                "plucker_emb": torch.randn(1, 1536, remembers + frames, 16, 16, generator=draw),
                **_remembered(torch.cat(made, 2) if clip else None, clip),
                "predict_latent_idx": (10 * clip + 1, 10 * clip + 15) if clip else (0, FIRST),
                "fa_version": None,
            }
            latents = _denoised(call, solver(), torch.cat([seen, noise[:, :, seen.shape[2] :]], 2), seen, given)
            made.append(latents[:, :, -10:] if clip else latents)
            seen = latents[:, :, -KNOWN:]
        return made

    return Case("mgx/Matrix-Game-3", build, roll, rounding=2**-8)


_MODEL = "wan.modules.model"


def _remembered(made: Tensor | None, clip: int) -> dict[str, Any]:
    """Single frames of the past as a clip is given them, with their numbers; others for every clip."""
    names = ("x_memory", "timestep_memory", "mouse_cond_memory", "keyboard_cond_memory", "memory_latent_idx")
    if made is None:
        return dict.fromkeys(names)
    frames = [10 * clip + 3 - step * (2 + clip % 2) for step in range(MEMORY - 1)] + [1]
    actions = torch.ones(1, MEMORY, 2), -torch.ones(1, MEMORY, 6)
    return dict(zip(names, (made[:, :, frames], torch.zeros(1, MEMORY * FRAME), *actions, frames), strict=True))


def _denoised(call: Callable[..., Any], scheduler: Any, latents: Tensor, seen: Tensor, given: dict[str, Any]) -> Tensor:
    scheduler.set_timesteps(STEPS, device="cpu", shift=5.0)
    known = seen.shape[2]
    for time in scheduler.timesteps:
        times = latents.new_full((latents.shape[2], FRAME), time)
        times[:known].zero_()
        flow = call(x=latents, t=times.flatten()[None], seq_len=(FIRST + MEMORY) * FRAME, **given)
        latents = scheduler.step(flow, time, latents, return_dict=False)[0]
        latents = torch.cat([seen, latents[:, :, known:]], 2)
    return latents


CASES = {"Matrix-Game 3": _matrix_game_3()}
