"""Code bases of world and video models, each with a tiny model of theirs and the loop that their pipelines run.

``build`` imports from a checkout; ``roll`` calls the model as the pipeline does, chunk by chunk with fresh state, and
gives all it returned and all caches that it wrote to.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stubs
import torch
from torch import Tensor, nn

HEADS, WIDTH, LAYERS, FRAME, TEXT = 2, 64, 3, 64, 8
"""Sizes of the Wan family's tiny models; a frame has 16 x 16 latents, which are 64 tokens."""

Roll = Callable[[Callable[..., Any]], list[Tensor]]


@dataclass(frozen=True)
class Case:
    """One code base.

    Attributes:
        folder: the name of the checkout.
        build: makes the model from the checkout.
        roll: calls it.
        rounding: relative difference that another order of sums makes; more where the model computes in bfloat16.
    """

    folder: str
    build: Callable[[Path], nn.Module]
    roll: Roll
    rounding: float = 1e-5


def _wan(**more: Any) -> dict[str, Any]:
    sizes = {"patch_size": (1, 2, 2), "text_len": TEXT, "in_dim": 4, "dim": WIDTH, "ffn_dim": 128, "freq_dim": 32}
    return {
        "model_type": "t2v",
        **sizes,
        "text_dim": 16,
        "out_dim": 4,
        "num_heads": HEADS,
        "num_layers": LAYERS,
        **more,
    }


def _family(root: Path, packages: dict[str, str], attention: str, model: str) -> Any:
    """The module with the model of a code base of the Wan family."""
    stubs.flash_attn()
    sys.path.insert(0, str(root))
    for name, place in packages.items():
        stubs.package(name, root / place)
    stubs.wan_attention(attention, root / (attention.replace(".", "/") + ".py"))
    return importlib.import_module(model)


def _cache(frames: int, **more: int) -> list[dict[str, Any]]:
    shape = (1, frames * FRAME, HEADS, WIDTH // HEADS)
    return [
        {"k": torch.zeros(shape), "v": torch.zeros(shape), **{name: torch.tensor([at]) for name, at in more.items()}}
        for _ in range(LAYERS)
    ]


def _text_cache() -> list[dict[str, Any]]:
    shape = (1, TEXT, HEADS, WIDTH // HEADS)
    return [{"k": torch.zeros(shape), "v": torch.zeros(shape), "is_init": False} for _ in range(LAYERS)]


def _stream(
    call: Callable[..., Any], cache: list[dict[str, Any]], given: Callable[[int], dict[str, Any]], chunks: int = 6
) -> list[Tensor]:
    """Chunks of two frames: steps on a noisy latent, then a clean pass that commits keys and values."""
    draw, frames, found = torch.Generator().manual_seed(1), 2, []
    text_cache, context = _text_cache(), torch.randn(1, 6, 16, generator=draw)
    for chunk in range(chunks):
        latent = torch.randn(1, 4, frames, 16, 16, generator=draw)
        for timestep in (1000, 500, 0):
            times = torch.full((1, frames), timestep, dtype=torch.int64)
            caches = {"kv_cache": cache, "crossattn_cache": text_cache, **given(chunk * frames * FRAME)}
            flow = call(latent, t=times, context=context, seq_len=32760, **caches)
            found.append(flow.clone())
            latent = latent - 0.3 * flow
    return found + [layer[name] for layer in cache for name in ("k", "v")]


def _self_forcing(local: int) -> Case:
    def build(root: Path) -> nn.Module:
        names = {"wan": "wan", "wan.modules": "wan/modules"}
        code = _family(root, names, "wan.modules.attention", "wan.modules.causal_model")
        window = {"local_attn_size": local, "sink_size": 1 if local > 0 else 0}
        return stubs.filled(code.CausalWanModel(**_wan(**window)))

    def roll(call: Callable[..., Any]) -> list[Tensor]:
        cache = _cache(local if local > 0 else 12, global_end_index=0, local_end_index=0)
        return _stream(call, cache, lambda start: {"current_start": start, "cache_start": None})

    return Case("Self-Forcing", build, roll)


def _causvid() -> Case:
    def build(root: Path) -> nn.Module:
        parts = ("causvid", "causvid/models", "causvid/models/wan", "causvid/models/wan/wan_base")
        names = {part.replace("/", "."): part for part in (*parts, "causvid/models/wan/wan_base/modules")}
        attention = "causvid.models.wan.wan_base.modules.attention"
        model = _family(root, names, attention, "causvid.models.wan.causal_model").CausalWanModel(**_wan())
        model.num_frame_per_block = 2
        return stubs.filled(model)

    def roll(call: Callable[..., Any]) -> list[Tensor]:
        return _stream(call, _cache(12), lambda at: {"current_start": at, "current_end": at + 2 * FRAME})

    return Case("CausVid", build, roll)


def _longlive() -> Case:
    window = 6

    def build(root: Path) -> nn.Module:
        os.environ.update(LLV2_TRITON_ROPE="0", LLV2_TRITON_ADALN="0")  # its own switches: kernels that need a GPU
        missing = "transformers.models.x_clip.modeling_x_clip"  # imported by old code, and never used
        sys.modules[missing] = types.ModuleType(missing)
        sys.modules[missing].x_clip_loss = None  # type: ignore[attr-defined]
        names = {"wan_5b": "wan_5b", "wan_5b.modules": "wan_5b/modules", "utils": "utils"}
        code = _family(root, names, "wan_5b.modules.attention", "wan_5b.modules.causal_model")
        sizes = {"local_attn_size": window, "sink_size": 2, "num_frame_per_block": 2}
        model = code.CausalWanModel(**_wan(**sizes))
        for block in model.blocks:
            block.self_attn.max_attention_size = window * FRAME  # a constant of 704 lines elsewhere
        return stubs.filled(model)

    def roll(call: Callable[..., Any]) -> list[Tensor]:
        counters = {"global_end_index": 0, "local_end_index": 0, "pinned_start": -1, "pinned_len": 0}
        cache = _cache(window, **counters)
        code = sys.modules["wan_5b.modules.causal_model"]

        def given(start: int) -> dict[str, Any]:
            code._CURRENT_GRID_META.update({name: int(cache[0][name].item()) for name in counters})
            return {"current_start": start, "cache_start": None}

        return _stream(call, cache, given)

    return Case("LongLive", build, roll)


def _skyreels() -> Case:
    def build(root: Path) -> nn.Module:
        torch.cuda.nvtx.range_push = torch.cuda.nvtx.range_pop = lambda *_: None  # type: ignore[assignment]
        names = {"skyreels_v2_infer": "skyreels_v2_infer", "skyreels_v2_infer.modules": "skyreels_v2_infer/modules"}
        attention = "skyreels_v2_infer.modules.attention"
        code = _family(root, names, attention, "skyreels_v2_infer.modules.transformer")
        return stubs.filled(code.WanModel(**_wan(inject_sample_info=True)))

    def roll(call: Callable[..., Any]) -> list[Tensor]:
        draw, frames, found = torch.Generator().manual_seed(1), 8, []
        latent, context = torch.randn(1, 4, frames, 16, 16, generator=draw), torch.randn(1, 8, 16, generator=draw)
        for step in range(4):
            times = torch.tensor([[999 - 200 * step if place >= 2 * step else 0 for place in range(frames)]])
            flow = call(latent, t=times, context=context, fps=[1])
            found.append(flow.clone())
            latent = latent - 0.2 * flow
        return found

    return Case("SkyReels-V2", build, roll, rounding=2**-8)


def _gamecraft() -> Case:
    frames, new, side = 18, 9, 16

    def build(root: Path) -> nn.Module:
        os.environ["DISABLE_SP"] = "1"
        stubs.flash_attn()
        stubs.package("hymm_sp", root / "hymm_sp")
        stubs.package("hymm_sp.modules", root / "hymm_sp" / "modules")
        code = importlib.import_module("hymm_sp.modules.models")
        source = inspect.getsource(importlib.import_module("hymm_sp.modules.parallel_states").get_cu_seqlens)
        exec(source.replace('device="cuda"', "device=text_mask.device"), code.__dict__)
        text = {"text_projection": "single_refiner", "text_states_dim": 32, "text_states_dim_2": 16}
        sizes = {"hidden_size": WIDTH, "mlp_width_ratio": 2.0, "num_heads": HEADS, "rope_dim_list": [8, 12, 12]}
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
    channels, lines, columns, frames, chunk = 4, 8, 12, 16, 4

    def build(root: Path) -> nn.Module:
        sys.path.insert(0, str(root))
        parallel = importlib.import_module("hyvideo.commons.parallel_states")
        alone = object.__new__(parallel.ParallelDims)  # its constructor makes a mesh of GPUs
        alone.sp = alone.world_size = 1
        setattr(parallel, "__parallel_dims", alone)
        flags = {"use_sageattn": False, "enable_torch_compile": False, "use_fp8_gemm": False, "use_vae_parallel": False}
        words = {"sage_blocks_range": "0-53", "include_patterns": "double_blocks", "quant_type": "fp8-per-block"}
        state = importlib.import_module("hyvideo.commons.infer_state")
        state.initialize_infer_state(argparse.Namespace(**flags, **words))
        code = importlib.import_module("hyvideo.models.transformers.worldplay_1_5_transformer")
        sizes = {"patch_size": [1, 1, 1], "in_channels": channels, "out_channels": channels, "hidden_size": WIDTH}
        depth = {"heads_num": 2, "mlp_width_ratio": 4, "mm_double_blocks_depth": LAYERS, "mm_single_blocks_depth": 0}
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
        empty = [{"k_vision": None, "v_vision": None, "k_txt": None, "v_txt": None} for _ in range(LAYERS)]
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


CASES: dict[str, Case] = {
    "HY-WorldPlay": _worldplay(),
    "Self-Forcing": _self_forcing(-1),
    "Self-Forcing, sink and window": _self_forcing(4),
    "CausVid": _causvid(),
    "LongLive 2": _longlive(),
    "SkyReels-V2, diffusion forcing": _skyreels(),
    "Hunyuan-GameCraft": _gamecraft(),
}
