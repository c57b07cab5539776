"""HunyuanVideo and the world models that grew out of it: text joined to the video, a mask of the text's padding."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import stubs
import torch
from case import FRAME, WIDTH, Case
from released_worldplay import transformer_code
from torch import Tensor, nn


def _lengths_on_the_cpu(origin: Any, code: Any) -> None:
    """``get_cu_seqlens`` of a code base makes its tensor where the text's mask is, not on a GPU."""
    exec(inspect.getsource(origin.get_cu_seqlens).replace('device="cuda"', "device=text_mask.device"), code.__dict__)


def _video() -> Case:
    frames = 6

    def build(root: Path) -> nn.Module:
        stubs.flash_attn()
        sys.path.insert(0, str(root))
        for name in ("hyvideo", "hyvideo.modules"):
            stubs.package(name, root / name.replace(".", "/"))
        code = importlib.import_module("hyvideo.modules.models")
        _lengths_on_the_cpu(importlib.import_module("hyvideo.modules.attenion"), code)
        given = types.SimpleNamespace(text_states_dim=32, text_states_dim_2=16)
        sizes = {"hidden_size": WIDTH, "mlp_width_ratio": 2.0, "heads_num": 2, "rope_dim_list": [8, 12, 12]}
        depth = {"mm_double_blocks_depth": 2, "mm_single_blocks_depth": 3, "guidance_embed": True}
        channels = {"patch_size": [1, 2, 2], "in_channels": 4, "out_channels": 4}
        return stubs.filled(code.HYVideoDiffusionTransformer(given, **channels, **sizes, **depth))

    def roll(call: Callable[..., Any]) -> list[Tensor]:
        draw, found = torch.Generator().manual_seed(1), []
        angles = torch.randn(frames * FRAME, 32, generator=draw)
        fixed = {"freqs_cos": angles.cos(), "freqs_sin": angles.sin(), "return_dict": True}
        for tokens in (7, 9, 10):
            text = torch.randn(1, 10, 32, generator=draw), torch.randn(1, 16, generator=draw)
            mask = (torch.arange(10) < tokens).long()[None]
            fixed |= {"text_states": text[0], "text_states_2": text[1], "text_mask": mask}
            latent = torch.randn(1, 4, frames, 16, 16, generator=draw)
            for timestep in (999.0, 800.0, 600.0, 300.0):
                flow = call(latent, torch.tensor([timestep]), guidance=torch.tensor([6000.0]), **fixed)["x"]
                latent = latent - 0.2 * flow
            found.append(latent.clone())
        return found

    return Case("HunyuanVideo", build, roll)


def _gamecraft() -> Case:
    frames, new, side = 18, 9, 16

    def build(root: Path) -> nn.Module:
        os.environ["DISABLE_SP"] = "1"
        stubs.flash_attn()
        stubs.package("hymm_sp", root / "hymm_sp")
        stubs.package("hymm_sp.modules", root / "hymm_sp" / "modules")
        code = importlib.import_module("hymm_sp.modules.models")
        _lengths_on_the_cpu(importlib.import_module("hymm_sp.modules.parallel_states"), code)
        text = {"text_projection": "single_refiner", "text_states_dim": 32, "text_states_dim_2": 16}
        sizes = {"hidden_size": WIDTH, "mlp_width_ratio": 2.0, "num_heads": 2, "rope_dim_list": [8, 12, 12]}
        depth = {"depth_double_blocks": 2, "depth_single_blocks": 3, "camera_in_channels": 6, "camera_down_coef": 8}
        given = types.SimpleNamespace(use_attention_mask=True, **text)
        model = code.HYVideoDiffusionTransformer(
            given, patch_size=[1, 2, 2], in_channels=9, out_channels=4, **sizes, **depth
        )
        return stubs.filled(model)

    def roll(call: Callable[..., Any]) -> list[Tensor]:
        draw = torch.Generator().manual_seed(1)
        angles = torch.randn(frames * FRAME, 32, generator=draw)
        text = torch.randn(1, 10, 32, generator=draw), torch.randn(1, 16, generator=draw)
        fixed = {"text_states": text[0], "text_states_2": text[1], "text_mask": torch.ones(1, 10, dtype=torch.int64)}
        fixed |= {"freqs_cos": angles.cos(), "freqs_sin": angles.sin(), "return_dict": True}
        found = []
        for _ in range(2):
            history, latent = (torch.randn(1, 4, n, side, side, generator=draw) for n in (frames - new, new))
            cameras = torch.randn(1, 33, 6, side * 8, side * 8, generator=draw)
            for timestep in (999.0, 800.0, 600.0, 300.0):
                joined = torch.cat([history, latent], 2)
                given = torch.cat([joined, torch.zeros_like(joined), torch.ones_like(joined[:, :1])], 1)
                flow = call(given, torch.tensor([timestep]), cam_latents=cameras, is_cache=False, **fixed)["x"]
                found.append(flow.clone())
                latent = latent - 0.2 * flow[:, :, frames - new :]
        return found

    return Case("Hunyuan-GameCraft-1.0", build, roll)


def _worldplay() -> Case:
    channels, lines, columns, frames, chunk, layers = 4, 8, 12, 16, 4, 2

    def build(root: Path) -> nn.Module:
        code = transformer_code(root)
        sizes = {"patch_size": [1, 1, 1], "in_channels": channels, "out_channels": channels, "hidden_size": WIDTH}
        depth = {"heads_num": 2, "mlp_width_ratio": 4, "mm_double_blocks_depth": layers, "mm_single_blocks_depth": 0}
        text = {"text_projection": "single_refiner", "text_states_dim": 24, "text_states_dim_2": None}
        more = {"text_pool_type": None, "glyph_byT5_v2": True, "vision_projection": "linear", "vision_states_dim": 20}
        flags = {"concat_condition": True, "qkv_bias": True, "qk_norm": True, "use_attention_mask": True}
        forms = {"rope_dim_list": [8, 12, 12], "rope_theta": 256, "attn_mode": "flash", "use_cond_type_embedding": True}
        model = code.HunyuanVideo_1_5_DiffusionTransformer(**sizes, **depth, **text, **more, **flags, **forms)
        model.add_action_parameters()
        return stubs.filled(model)

    def roll(call: Callable[..., Any]) -> list[Tensor]:
        draw = torch.Generator().manual_seed(1)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw)

        views = torch.eye(4).repeat(1, frames, 1, 1)
        views[0, :, 0, 3] = torch.arange(frames) * 0.05
        lens = torch.zeros(1, frames, 3, 3)
        lens[..., 0, 0], lens[..., 1, 1], lens[..., 2, 2] = 0.505, 0.898, 1
        action = torch.ones(1, frames, dtype=torch.int64)
        latents, condition = (
            random(1, channels, frames, lines, columns),
            torch.zeros(1, channels + 1, frames, lines, columns),
        )
        glyphs = {"byt5_text_states": random(1, 6, 1472), "byt5_text_mask": torch.ones(1, 6, dtype=torch.int64)}
        empty = [{"k_vision": None, "v_vision": None, "k_txt": None, "v_txt": None} for _ in range(layers)]
        common = {"bi_inference": False, "mask_type": "i2v"}
        words = {"text_states": random(1, 10, 24), "encoder_attention_mask": torch.ones(1, 10, dtype=torch.int64)}
        text = call(
            **common, **words, ar_txt_inference=True, ar_vision_inference=False, timestep_txt=torch.zeros(1),
            vision_states=random(1, 5, 20), extra_kwargs=glyphs, kv_cache=empty, cache_txt=True,
        )  # fmt: skip
        common |= {"ar_txt_inference": False, "ar_vision_inference": True, "timestep_r": None, "return_dict": False}

        def video(first: int, last: int, latent: Tensor, timestep: float, cache: Any, past: int) -> Any:
            part = slice(first, last)
            return call(
                **common, hidden_states=torch.cat([latent, condition[:, :, part]], 1), kv_cache=cache,
                timestep=torch.full((last - first,), timestep), viewmats=views[:, part], Ks=lens[:, part],
                action=action[:, part], cache_vision=not past and first == 0 and last > chunk,
                rope_temporal_size=past + last - first, start_rope_start_idx=past,
            )  # fmt: skip

        found = []
        for start in range(2 * chunk, frames, chunk):
            cache = video(0, start, latents[:, :, :start], 14.0, text, 0)
            latent = latents[:, :, start : start + chunk]
            for timestep in (1000.0, 750.0, 500.0):
                out = video(start, start + chunk, latent, timestep, cache, start)
                found.append((out[0] if isinstance(out, tuple) else out).clone())
                latent = latent - 0.3 * found[-1]
        return found

    return Case("HY-WorldPlay", build, roll)


def _framepack() -> Case:
    """Sections of a video: history at three sizes of patches in front of the frames under way, its own solver."""
    window, history = 4, (16, 2, 1)

    def build(root: Path) -> nn.Module:
        stubs.flash_attn()
        sys.path.insert(0, str(root))
        stubs.package("diffusers_helper", root / "diffusers_helper")
        tools: Any = stubs.package("diffusers_helper.utils")  # images and video files besides
        tools.zero_module = lambda module: module
        code = importlib.import_module("diffusers_helper.models.hunyuan_video_packed")
        heads = {"num_attention_heads": 2, "attention_head_dim": 32, "rope_axes_dim": (8, 12, 12)}
        depth = {"num_layers": 2, "num_single_layers": 2, "num_refiner_layers": 1}
        text = {"text_embed_dim": 32, "pooled_projection_dim": 16, "image_proj_dim": 20}
        flags = {"has_image_proj": True, "has_clean_x_embedder": True}
        model = code.HunyuanVideoTransformer3DModelPacked(**heads, **depth, **text, **flags)
        return stubs.filled(model)

    def roll(call: Callable[..., Any]) -> list[Tensor]:
        wrapper = importlib.import_module("diffusers_helper.k_diffusion.wrapper")
        solver = importlib.import_module("diffusers_helper.k_diffusion.uni_pc_fm")
        draw, found = torch.Generator().manual_seed(1), []
        mask = (torch.arange(10) < 7).long()[None]
        told = {"encoder_hidden_states": torch.randn(1, 10, 32, generator=draw), "encoder_attention_mask": mask}
        told |= {"pooled_projections": torch.randn(1, 16, generator=draw), "guidance": torch.tensor([10000.0])}
        told["image_embeddings"] = torch.randn(1, 5, 20, generator=draw)
        places = torch.arange(1 + sum(history) + window)[None]
        first, far, middle, near, now = places.split([1, *history, window], 1)
        indices = {"latent_indices": now, "clean_latent_2x_indices": middle, "clean_latent_4x_indices": far}
        indices["clean_latent_indices"] = torch.cat([first, near], 1)
        start = torch.randn(1, 16, 1, 16, 16, generator=draw)
        past = torch.cat([torch.zeros(1, 16, sum(history), 16, 16), start], 2)
        for _ in range(3):
            far, middle, near = past[:, :, -sum(history) :].split(history, 2)
            clean = {"clean_latents": torch.cat([start, near], 2)}
            clean |= {"clean_latents_2x": middle, "clean_latents_4x": far}
            positive = {**told, **indices, **clean}
            extra = {"dtype": torch.float32, "cfg_scale": 1.0, "cfg_rescale": 0.0, "concat_latent": None}
            noise, sigmas = torch.randn(1, 16, window, 16, 16, generator=draw), torch.linspace(1, 0, 5)
            given = {**extra, "positive": positive, "negative": positive}
            made = solver.sample_unipc(wrapper.fm_wrapper(call), noise, sigmas, extra_args=given, disable=True)
            found.append(made)
            past = torch.cat([past, made], 2)
        return found

    return Case("FramePack", build, roll)


CASES = {
    "FramePack": _framepack(),
    "HY-WorldPlay": _worldplay(),
    "Hunyuan-GameCraft": _gamecraft(),
    "HunyuanVideo": _video(),
}
