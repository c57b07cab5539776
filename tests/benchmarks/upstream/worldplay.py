"""HY-WorldPlay's released transformer and its pipeline's chunk loop, unedited, with random weights.

Text encoders, the vision encoder and the VAE are left out: their modules are empty, what they would hand over is drawn
at random. The pipeline object is a stand-in that holds what the loop reads; the loop is the released one.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from released_worldplay import TRANSFORMER, transformer_code
from torch import Tensor, nn

from lightint_compile.models.random_weights import fill_random
from lightint_compile.models.worldplay.config import WorldPlayConfig
from lightint_compile.models.worldplay.trajectory import Trajectory

TEXT, VALID, GLYPHS, VALID_GLYPHS = 1000, 119, 256, 2
"""Tokens of the prompt and of its glyphs as the tokenizers pad them, and how many of them are real."""

PIPELINE = "hyvideo.pipelines.worldplay_video_pipeline"


class _Empty(types.ModuleType):
    """A module whose every name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def imported(root: Path, *, compiled: bool = False) -> Any:
    """The pipeline's module; ``compiled`` is the release's own flag for ``torch.compile``."""
    transformer_code(root, compiled=compiled)
    diffusers.models.AutoencoderKL  # noqa: B018  loaded before what it may import as well is replaced
    for _ in range(30):
        try:
            return importlib.import_module(PIPELINE)
        except ModuleNotFoundError as error:
            assert error.name is not None
            empty = _Empty(error.name)
            empty.__path__ = []
            empty.__spec__ = importlib.machinery.ModuleSpec(error.name, None)
            sys.modules[error.name] = empty
    raise ImportError(PIPELINE)


def transformer(config: WorldPlayConfig, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The released transformer in the sizes of ``config``."""
    code = sys.modules[TRANSFORMER]
    sizes = {"in_channels": config.in_channels, "out_channels": config.out_channels, "heads_num": config.heads}
    depth = {"mm_double_blocks_depth": config.depth, "mm_single_blocks_depth": 0, "mlp_width_ratio": config.mlp_ratio}
    text = {"text_projection": "single_refiner", "text_states_dim": config.text_dim, "text_states_dim_2": None}
    more = {"glyph_byT5_v2": True, "vision_projection": "linear", "vision_states_dim": config.vision_dim}
    flags = {"concat_condition": True, "qkv_bias": True, "qk_norm": True, "use_attention_mask": True}
    forms = {"rope_theta": 256, "attn_mode": "flash", "use_cond_type_embedding": True, "text_pool_type": None}
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = code.HunyuanVideo_1_5_DiffusionTransformer(
                patch_size=list(config.patch_size),
                rope_dim_list=list(config.rope_dims),
                hidden_size=config.hidden_size,
                **sizes, **depth, **text, **more, **flags, **forms,
            )  # fmt: skip
            model.add_action_parameters()
    finally:
        torch.set_default_dtype(before)
    return fill_random(model.to(dtype)).eval().requires_grad_(False)


@dataclass
class Inputs:
    """What a rollout is given: latents and condition [1, C, F, H, W], cameras [1, F, 4, 4], text and its masks."""

    latents: Tensor
    condition: Tensor
    path: Trajectory
    text: dict[str, Any]

    @classmethod
    def of(cls, config: WorldPlayConfig, path: str, device: torch.device) -> Inputs:
        """Drawn from a seed; of the condition only the first frame is given."""
        draw = torch.Generator(device).manual_seed(1)
        walk = Trajectory.from_pose_string(path)
        frames, size = len(walk.extrinsics), (config.latent_height, config.latent_width)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw, device=device)

        def valid(tokens: int, real: int) -> Tensor:
            return (torch.arange(tokens, device=device) < real)[None].long()

        condition = torch.zeros(1, config.in_channels + 1, frames, *size, device=device)
        condition[:, :-1, 0], condition[:, -1, 0] = random(1, config.in_channels, *size), 1
        real = min(VALID, TEXT)
        text = {
            "prompt_embeds": random(1, TEXT, config.text_dim),
            "prompt_mask": valid(TEXT, real),
            "vision_states": random(1, config.vision_tokens, config.vision_dim),
            "extra_kwargs": {
                "byt5_text_states": random(1, GLYPHS, config.glyph_dim),
                "byt5_text_mask": valid(GLYPHS, VALID_GLYPHS),
            },
        }
        return cls(random(1, config.in_channels, frames, *size), condition, walk, text)


def pipeline(code: Any, model: nn.Module, config: WorldPlayConfig, device: torch.device) -> Any:
    """What the released loop reads of its pipeline, around ``model``; ``ar_rollout`` is the loop."""
    released = code.HunyuanVideo_1_5_Pipeline
    scheduler = code.FlowMatchDiscreteScheduler(shift=config.shift)
    scheduler.set_timesteps(config.steps, device=device)
    points = code.generate_points_in_sphere(config.fov_points, 8.0).to(device)
    half = device.type == "cuda"
    held = {
        "transformer": model, "scheduler": scheduler, "points_local": points, "execution_device": device,
        "target_dtype": torch.bfloat16 if half else torch.float32, "autocast_enabled": half,
        "do_classifier_free_guidance": False, "enable_offloading": False, "guidance_scale": 1.0,
        "chunk_latent_frames": config.chunk_frames,
        "num_inference_steps": config.steps, "num_warmup_steps": 0,
    }  # fmt: skip
    names = ("ar_rollout", "_ar_rollout_inner", "init_kv_cache")
    methods = {name: getattr(released, name) for name in names if hasattr(released, name)}
    made = type("Loop", (), methods | {"progress_bar": lambda self, total: contextlib.nullcontext()})()
    vars(made).update(held)
    return made


def accelerated_by_release(pipe: Any, preset: str) -> None:
    """Light Interaction's own switches, in a checkout that its patch was applied to; the loop moves text encoders."""
    config = importlib.import_module("worldplay_acceleration_config").WorldPlayAccelerationConfig.from_preset(preset)
    pipe.transformer.attn_param.update(config.to_attn_param())
    vars(pipe).update(acceleration_config=config, text_encoder=nn.Module(), text_encoder_2=None, byt5_model=None)


def rollout(pipe: Any, inputs: Inputs, device: torch.device) -> Tensor:
    """The released loop over the whole path: latents [1, C, F, H, W]."""
    walk, scheduler = inputs.path, pipe.scheduler
    pipe.chunk_num = inputs.latents.shape[2] // pipe.chunk_latent_frames
    scheduler.set_timesteps(pipe.num_inference_steps, device=device)
    cameras = {"viewmats": walk.extrinsics[None], "Ks": walk.intrinsics[None], "action": walk.actions[None]}
    result: Tensor = pipe.ar_rollout(
        inputs.latents.clone(), scheduler.timesteps, cond_latents=inputs.condition, task_type="i2v",
        device=device, **inputs.text, **{name: each.float().to(device) for name, each in cameras.items()},
    )  # fmt: skip
    return result


class Calls:
    """The calls that the loop makes for one chunk behind ``context`` frames, each by itself."""

    def __init__(self, pipe: Any, inputs: Inputs, context: int, device: torch.device) -> None:
        self._pipe, self._inputs, self._context, self._device = pipe, inputs, context, device
        pipe.init_kv_cache()
        text, extra = inputs.text, inputs.text["extra_kwargs"]
        self._text = self._call(
            ar_txt_inference=True, ar_vision_inference=False, timestep_txt=torch.zeros(1, device=device),
            text_states=text["prompt_embeds"], encoder_attention_mask=text["prompt_mask"], cache_txt=True,
            vision_states=text["vision_states"], extra_kwargs=extra, kv_cache=pipe._kv_cache,
        )  # fmt: skip

    def prefill(self) -> Any:
        """Keys and values of the context frames."""
        frames, inputs = slice(0, self._context), self._inputs
        latent = torch.cat([inputs.latents[:, :, frames], inputs.condition[:, :, frames]], 1)
        return self._video(latent, frames, 14.0, self._text, 0, cache_vision=True)

    def step(self, cache: Any, latent: Tensor, timestep: float) -> Tensor:
        """One denoising step of the chunk behind the context: the prediction."""
        frames = slice(self._context, self._context + latent.shape[2])
        given = torch.cat([latent, self._inputs.condition[:, :, frames]], 1)
        return self._video(given, frames, timestep, cache, self._context, cache_vision=False)[0]

    def chunk(self) -> Tensor:
        """Prefill and all steps, the scheduler's between them."""
        scheduler, steps = self._pipe.scheduler, self._pipe.num_inference_steps
        cache, latent = self.prefill(), self._latent()
        scheduler.set_timesteps(steps, device=self._device)
        for timestep in scheduler.timesteps:
            latent = scheduler.step(self.step(cache, latent, timestep), timestep, latent, return_dict=False)[0]
        return latent

    def named(self) -> dict[str, Callable[[], Any]]:
        """Each kind of call, ready to be made."""
        cache, latent = self.prefill(), self._latent()
        return {"prefill": self.prefill, "step": lambda: self.step(cache, latent, 750.0), "chunk": self.chunk}

    def _latent(self) -> Tensor:
        return self._inputs.latents[:, :, self._context : self._context + self._pipe.chunk_latent_frames]

    def _video(self, latent: Tensor, frames: slice, timestep: Any, cache: Any, past: int, cache_vision: bool) -> Any:
        walk, dtype = self._inputs.path, self._pipe.target_dtype
        cameras = {"viewmats": walk.extrinsics, "Ks": walk.intrinsics, "action": walk.actions}
        count = latent.shape[2]
        times = torch.full((count,), timestep, device=self._device)
        return self._call(
            ar_txt_inference=False, ar_vision_inference=True, hidden_states=latent, timestep=times, timestep_r=None,
            return_dict=False, kv_cache=cache, cache_vision=cache_vision, rope_temporal_size=past + count,
            start_rope_start_idx=past,
            **{name: each[None, frames].to(self._device, dtype) for name, each in cameras.items()},
        )  # fmt: skip

    def _call(self, **given: Any) -> Any:
        pipe = self._pipe
        with torch.autocast("cuda", dtype=pipe.target_dtype, enabled=pipe.autocast_enabled):
            return pipe.transformer(bi_inference=False, mask_type="i2v", **given)
