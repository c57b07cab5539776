"""Models that denoise clip after clip, single frames of what was made before in front of each."""

from __future__ import annotations

import contextlib
import importlib
import random
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import stubs
import torch
from case import FRAME, WIDTH, Case
from causal_wan import family, sizes
from PIL import Image
from torch import Tensor, nn

FIRST, LATER, KNOWN, MEMORY = 15, 14, 4, 5
"""Latent frames of the first clip, and of a later one, the first of which are known; remembered ones before it."""

CHANNELS, CLIPS, STEPS = 4, 4, 3


def _code(root: Path) -> Any:
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment]  # where its tables of positions are made
    names = ("wan", "wan.modules", "wan.utils", "wan.distributed")
    return family(root, {name: name.replace(".", "/") for name in names}, "wan.modules.attention", "wan.modules.model")


def _built(code: Any, channels: int) -> nn.Module:
    inner = {"hidden_size": 16, "img_hidden_size": WIDTH, "keyboard_hidden_dim": 64, "mouse_hidden_dim": 64}
    rope = {"rope_dim_list": [8, 12, 12], "mouse_qk_dim_list": [8, 12, 12], "patch_size": [1, 2, 2]}
    actions = {**inner, **rope, "mouse_dim_in": 2, "keyboard_dim_in": 6, "heads_num": 2, "blocks": [0]}
    form = {"model_type": "ti2v", "action_config": actions, "use_memory": True, "sigma_theta": 0.8}
    given = sizes(**form, cross_attn_norm=True, num_layers=2) | {"in_dim": channels, "out_dim": channels}
    model = code.WanModel(**given)
    for block in model.blocks:  # given bfloat16 whatever the model computes in
        block.cross_attn.bfloat16()
    return stubs.filled(model)


def _matrix_game_3() -> Case:
    """Steered by keys and the mouse; its blocks read the camera, and their attention the frames' own numbers."""

    def build(root: Path) -> nn.Module:
        return _built(_code(root), CHANNELS)

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


class _Pipeline:
    """The pipeline of the release: its own loop, cameras, rays and scheduler, around stand-ins for its encoders."""

    def __init__(self, code: types.ModuleType, model: nn.Module) -> None:
        self._code, self._made = code, list[Tensor]()
        draw = torch.Generator().manual_seed(1)
        image, text = torch.randn(48, 1, 8, 8, generator=draw), torch.randn(5, 16, generator=draw)
        self.pipe = object.__new__(code.MatrixGame3Pipeline)  # without weights and encoders
        vars(self.pipe).update(
            model=model,
            text_encoder=lambda *_, **__: [text],
            vae=types.SimpleNamespace(dtype=torch.float32, encode=lambda _: [image], stream_decode=self._decoded),
            device=torch.device("cpu"),
            config=types.SimpleNamespace(sample_neg_prompt=""),
            vae_stride=(4, 16, 16),
            patch_size=(1, 2, 2),
            **{"rank": 0, "sp_size": 1, "fa_version": None, "use_async_vae": False, "output_dir": ""},
        )

    def _decoded(self, latents: Tensor, cache: Any, **_: Any) -> tuple[Tensor, Any]:
        self._made.append(latents.clone())
        return torch.zeros(1, 3, 1, 8, 8), cache

    def __call__(self, seed: int) -> Tensor:
        random.seed(seed)  # it draws the actions
        self._made.clear()
        given = {"max_area": 128 * 128, "num_inference_steps": STEPS, "seed": seed}
        args = types.SimpleNamespace(size="128*128", save_name="", num_iterations=CLIPS)
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(sys.stderr):  # with which its loop ends
            self.pipe.generate("", Image.new("RGB", (128, 128)), **given, args=args)
        return torch.cat(self._made, 2)


class _Float32:
    """``torch`` as the loop sees it: what it makes in bfloat16 is float32, which the CPU's model computes in."""

    bfloat16 = torch.float32

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _its_pipeline() -> Case:
    missing: dict[str, dict[str, Any]] = {
        "wan.distributed.fsdp": {"shard_model": None},
        "wan.distributed.sequence_parallel": {"sp_attn_forward": None, "sp_dit_forward": None},
        "wan.modules.t5": {"T5EncoderModel": None},
        "wan.modules.vae2_2": {"Wan2_2_VAE": None},
        "utils.visualize": {"process_video": lambda *_, **__: None},
        "utils.transform": {"get_video_transform": lambda *_: lambda image: image / 127.5 - 1},
        "pipeline.vae_worker": {"start_vae_worker_process": None},
        **{"pandas": {}, "trimesh": {}, "torchvision": {}, "torchvision.transforms": {"Lambda": None}},
    }

    def build(root: Path) -> _Pipeline:
        code = _code(root)
        sys.modules["wan.modules"].WanModel = code.WanModel  # type: ignore[attr-defined]
        for name in ("pipeline", "utils"):
            stubs.package(name, root / name)
        for name, names in missing.items():
            stubs.package(name).__dict__.update(names)
        loop: Any = importlib.import_module("pipeline.inference_pipeline")
        loop.torch = _Float32()
        return _Pipeline(loop, _built(code, 48))

    return Case("mgx/Matrix-Game-3", build, lambda call: [call(seed) for seed in (1, 2, 3)], rounding=2**-8)


CASES = {"Matrix-Game 3": _matrix_game_3(), "Matrix-Game 3, its pipeline": _its_pipeline()}
