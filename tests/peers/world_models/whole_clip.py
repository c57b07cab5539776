"""Models that denoise a whole clip: what changes between the steps is the latent and the time."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import stubs
import torch
from case import TEXT, WIDTH, Case
from causal_wan import family, sizes
from torch import Tensor, nn

STEPS, FRAMES = 4, 6


def _wan(folder: str, **more: Any) -> Case:
    """Wan's own loop: guidance in two calls, the scheduler that its pipeline uses; a list of latents goes in."""

    def build(root: Path) -> nn.Module:
        packages = {"wan": "wan", "wan.modules": "wan/modules", "wan.utils": "wan/utils"}
        code = family(root, packages, "wan.modules.attention", "wan.modules.model")
        return stubs.filled(code.WanModel(**sizes(cross_attn_norm=True)))

    def roll(call: Callable[..., Any]) -> list[Tensor]:
        solver = importlib.import_module("wan.utils.fm_solvers_unipc").FlowUniPCMultistepScheduler
        draw, found = torch.Generator().manual_seed(1), []
        length = FRAMES * 64
        for _ in range(2):
            texts = [[torch.randn(tokens, 16, generator=draw)] for tokens in (6, 5)]
            scheduler = solver(num_train_timesteps=1000, shift=1, use_dynamic_shifting=False)
            scheduler.set_timesteps(STEPS, device="cpu", shift=5.0)
            latents = [torch.randn(4, FRAMES, 16, 16, generator=draw)]
            for time in scheduler.timesteps:
                given = {"t": more.get("times", torch.stack)([time]), "seq_len": length}
                told, free = (call(latents, **given, context=text)[0] for text in texts)
                flow = free + 5.0 * (told - free)
                made = scheduler.step(flow[None], time, latents[0][None], return_dict=False, generator=draw)[0]
                latents = [made[0]]
            found.append(latents[0].clone())
        return found

    return Case(folder, build, roll)


def _a_time_for_each_token(times: list[Tensor]) -> Tensor:
    """As the pipeline of text and image makes it: the first frame is known, and its time is zero."""
    mask = torch.ones(FRAMES, 8, 8)
    mask[0] = 0
    return (mask * times[0]).flatten()[None]


def _ltx() -> Case:
    def build(root: Path) -> nn.Module:
        sys.path.insert(0, str(root))
        code = importlib.import_module("ltx_video.models.transformers.transformer3d")
        heads = {"num_attention_heads": 2, "attention_head_dim": 32, "in_channels": 4, "out_channels": 4}
        text = {"num_layers": 3, "cross_attention_dim": WIDTH, "caption_channels": 16, "qk_norm": "rms_norm"}
        rope = {"positional_embedding_theta": 10000.0, "positional_embedding_max_pos": [20, 2048, 2048]}
        forms = {"activation_fn": "gelu-approximate", "attention_bias": True, "norm_elementwise_affine": False}
        more = {"num_embeds_ada_norm": 1000, "standardization_norm": "rms_norm", "timestep_scale_multiplier": 1000}
        return stubs.filled(code.Transformer3DModel(**heads, **text, **rope, **forms, **more))

    def roll(call: Callable[..., Any]) -> list[Tensor]:
        patches = importlib.import_module("ltx_video.models.transformers.symmetric_patchifier")
        draw, found, patchifier = torch.Generator().manual_seed(1), [], patches.SymmetricPatchifier(1)
        for _ in range(2):
            latent, places = patchifier.patchify(torch.randn(1, 4, FRAMES, 8, 8, generator=draw))
            places = (places.float() * torch.tensor([8, 32, 32])[None, :, None]) * torch.tensor([1 / 25, 1, 1])[:, None]
            text, mask = torch.randn(1, TEXT, 16, generator=draw), torch.tensor([[1] * 6 + [0] * (TEXT - 6)])
            for step in range(STEPS):
                time = torch.full((1, latent.shape[1]), 1 - step / STEPS)
                given = {"encoder_hidden_states": text, "encoder_attention_mask": mask, "timestep": time}
                flow = call(latent, places, **given, return_dict=False)[0]
                latent = latent - flow / STEPS
            found.append(latent.clone())
        return found

    return Case("LTX-Video", build, roll)


def _opensora() -> Case:
    def build(root: Path) -> nn.Module:
        stubs.flash_attn()
        stubs.liger()
        sys.path.insert(0, str(root))
        for name in ("opensora", "opensora.models", "opensora.models.mmdit", "opensora.acceleration", "opensora.utils"):
            stubs.package(name, root / name.replace(".", "/"))
        for name, names in {
            "opensora.registry": {"MODELS": types.SimpleNamespace(register_module=lambda *_: lambda made: made)},
            "opensora.utils.ckpt": {"load_checkpoint": None},
            "opensora.acceleration.checkpoint": {"auto_grad_checkpoint": lambda block, *args: block(*args)},
        }.items():
            stubs.package(name).__dict__.update(names)
        code = importlib.import_module("opensora.models.mmdit.model")
        text = {"from_pretrained": "", "cache_dir": "", "vec_in_dim": 16, "context_in_dim": 16, "in_channels": 16}
        heads = {"hidden_size": WIDTH, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 3}
        forms = {"axes_dim": [8, 12, 12], "theta": 10000, "qkv_bias": True, "guidance_embed": False}
        return stubs.filled(code.MMDiTModel(code.MMDiTConfig(**text, **heads, **forms)))

    def roll(call: Callable[..., Any]) -> list[Tensor]:
        draw, found = torch.Generator().manual_seed(1), []
        grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (FRAMES, 8, 8)), indexing="ij"), -1)
        places = grid.flatten(0, 2)[None].float()
        for _ in range(2):
            latent = torch.randn(1, FRAMES * 64, 16, generator=draw)
            text = torch.randn(1, TEXT, 16, generator=draw), torch.randn(1, 16, generator=draw)
            given = {"img_ids": places, "txt": text[0], "txt_ids": torch.zeros(1, TEXT, 3), "y_vec": text[1]}
            for step in range(STEPS):
                flow = call(img=latent, **given, timesteps=torch.full((1,), 1 - step / STEPS))
                latent = latent - flow / STEPS
            found.append(latent.clone())
        return found

    return Case("Open-Sora", build, roll)


CASES = {
    "Wan 2.1": _wan("Wan2.1"),
    "Wan 2.2, a time for each token": _wan("Wan2.2", times=_a_time_for_each_token),
    "LTX-Video": _ltx(),
    "Open-Sora 2": _opensora(),
}
