"""The Wan family: causal models that keep keys and values in place, and those that denoise a whole clip."""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import stubs
import torch
from case import FRAME, HEADS, LAYERS, TEXT, WIDTH, Case
from torch import Tensor, nn


def sizes(**more: Any) -> dict[str, Any]:
    widths = {"patch_size": (1, 2, 2), "text_len": TEXT, "in_dim": 4, "dim": WIDTH, "ffn_dim": 128, "freq_dim": 32}
    return {
        "model_type": "t2v",
        **widths,
        "text_dim": 16,
        "out_dim": 4,
        "num_heads": HEADS,
        "num_layers": LAYERS,
        **more,
    }


def family(root: Path, packages: dict[str, str], attention: str, model: str) -> Any:
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
        code = family(root, names, "wan.modules.attention", "wan.modules.causal_model")
        window = {"local_attn_size": local, "sink_size": 1 if local > 0 else 0}
        return stubs.filled(code.CausalWanModel(**sizes(**window)))

    def roll(call: Callable[..., Any]) -> list[Tensor]:
        cache = _cache(local if local > 0 else 12, global_end_index=0, local_end_index=0)
        return _stream(call, cache, lambda start: {"current_start": start, "cache_start": None})

    return Case("Self-Forcing", build, roll)


def _causvid() -> Case:
    def build(root: Path) -> nn.Module:
        parts = ("causvid", "causvid/models", "causvid/models/wan", "causvid/models/wan/wan_base")
        names = {part.replace("/", "."): part for part in (*parts, "causvid/models/wan/wan_base/modules")}
        attention = "causvid.models.wan.wan_base.modules.attention"
        model = family(root, names, attention, "causvid.models.wan.causal_model").CausalWanModel(**sizes())
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
        code = family(root, names, "wan_5b.modules.attention", "wan_5b.modules.causal_model")
        form = {"local_attn_size": window, "sink_size": 2, "num_frame_per_block": 2}
        model = code.CausalWanModel(**sizes(**form))
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

    # tables by start frame: without being told of them, two graphs more than Dynamo makes, and four late
    return Case("LongLive", build, roll, memos=("wan_5b.modules.causal_model._FREQS_I_CACHE",))


def _skyreels() -> Case:
    def build(root: Path) -> nn.Module:
        torch.cuda.nvtx.range_push = torch.cuda.nvtx.range_pop = lambda *_: None  # type: ignore[assignment]
        names = {"skyreels_v2_infer": "skyreels_v2_infer", "skyreels_v2_infer.modules": "skyreels_v2_infer/modules"}
        attention = "skyreels_v2_infer.modules.attention"
        code = family(root, names, attention, "skyreels_v2_infer.modules.transformer")
        return stubs.filled(code.WanModel(**sizes(inject_sample_info=True)))

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


def _rolling() -> Case:
    """Frames of a window have levels of noise that rise; the cleanest block is committed, and the window rolls on."""
    block, levels, blocks = 3, 4, 7

    def build(root: Path) -> nn.Module:
        names = {"wan": "wan", "wan.modules": "wan/modules"}
        code = family(root, names, "wan.modules.attention", "wan.modules.causal_model")
        model = code.CausalWanModel(**sizes(local_attn_size=-1, sink_size=0))
        for each in model.blocks:  # constants of 1560 tokens a frame elsewhere
            attention = each.self_attn
            attention.frame_length, attention.block_length = FRAME, block * FRAME
            attention.max_attention_size = 15 * FRAME
        return stubs.filled(model)

    def roll(call: Callable[..., Any]) -> list[Tensor]:
        draw, frames, found = torch.Generator().manual_seed(1), blocks * block, []
        cache, text_cache = _cache(24, global_end_index=0, local_end_index=0), _text_cache()
        context = torch.randn(1, 6, 16, generator=draw)
        noise, held = torch.randn(1, 4, frames, 16, 16, generator=draw), torch.zeros(1, 4, frames, 16, 16)
        ladder = torch.tensor([250.0, 500.0, 750.0, 1000.0]).repeat_interleave(block)[None]

        def run(latent: Tensor, times: Tensor, first: int, *, commits: bool) -> Tensor:
            caches = {"kv_cache": cache, "crossattn_cache": text_cache, "current_start": first * FRAME}
            given = {"context": context, "seq_len": 32760, "cache_start": None, "updating_cache": commits}
            return call(latent, t=times, **caches, **given)

        for window in range(blocks + levels - 1):
            first, last = max(0, window - levels + 1) * block, (min(blocks - 1, window) + 1) * block
            latent = held[:, :, first:last].clone()
            if last - first == levels * block or first == 0:
                latent[:, :, -block:] = noise[:, :, last - block : last]
            times = ladder[:, -(last - first) :] if first == 0 else ladder[:, : last - first]
            clean = latent - 0.3 * run(latent, times, first, commits=False)
            found.append(clean)
            held[:, :, first:last] = clean
            run(clean[:, :, :block], torch.zeros(1, block), first, commits=True)
        return found + [layer[name] for layer in cache for name in ("k", "v")]

    # the cache is full late in these few windows, and is then rotated, and the last windows are shorter again
    return Case("RollingForcing", build, roll, late=3)


def _matrix_game() -> Case:
    """Actions by attention of their own, whose keys are kept in place as the frames' are."""
    tokens, chunk, window, chunks, layers = 880, 3, 6, 4, 2  # a frame of 880 tokens is asserted

    def build(root: Path) -> nn.Module:
        torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment]  # where its tables of positions are made
        names = {"wan": "wan", "wan.modules": "wan/modules"}
        code = family(root, names, "wan.modules.attention", "wan.modules.causal_model")
        inner = {"hidden_size": 16, "img_hidden_size": WIDTH, "keyboard_hidden_dim": 128, "mouse_hidden_dim": 128}
        forms = {"patch_size": [1, 2, 2], "qk_norm": True, "heads_num": 2, "keyboard_dim_in": 4, "mouse_dim_in": 2}
        given = sizes(model_type="i2v", in_dim=8, num_layers=layers, local_attn_size=window, sink_size=0)
        given = {name: value for name, value in given.items() if name != "text_dim"}
        blocks = {"blocks": list(range(layers))}
        model = code.CausalWanModel(**given, text_dim=16, action_config={**inner, **forms, **blocks})
        model.num_frame_per_block = chunk
        return stubs.filled(model)

    def kept(rows: int, length: int, heads: int, dim: int) -> list[dict[str, Any]]:
        shape, ends = (rows, length, heads, dim), ("global_end_index", "local_end_index")
        return [
            {"k": torch.zeros(shape), "v": torch.zeros(shape), **{name: torch.tensor([0]) for name in ends}}
            for _ in range(layers)
        ]

    def roll(call: Callable[..., Any]) -> list[Tensor]:
        draw, found, frames = torch.Generator().manual_seed(1), [], chunks * chunk
        caches = {"kv_cache": kept(1, window * tokens, HEADS, WIDTH // HEADS)}
        caches |= {"kv_cache_mouse": kept(tokens, window, 2, 64), "kv_cache_keyboard": kept(1, window, 2, 64)}
        views: list[dict[str, Any]] = [{"is_init": False} for _ in range(layers)]
        seen, image = torch.randn(1, 257, 1280, generator=draw), torch.randn(1, 4, frames, 44, 80, generator=draw)
        mouse, keys = (torch.randn(1, 1 + 4 * (frames - 1), size, generator=draw) for size in (2, 4))
        for first in range(0, frames, chunk):
            last = 1 + 4 * (first + chunk - 1)
            actions = {"mouse_cond": mouse[:, :last], "keyboard_cond": keys[:, :last], "visual_context": seen}
            given = {**caches, **actions, "cond_concat": image[:, :, first : first + chunk], "crossattn_cache": views}
            latent = torch.randn(1, 4, chunk, 44, 80, generator=draw)
            for timestep in (1000, 500, 0):
                times = torch.full((1, chunk), timestep, dtype=torch.int64)
                flow = call(latent, t=times, **given, current_start=first * tokens, cache_start=None)
                found.append(flow.clone())
                latent = latent - 0.3 * flow
        return found + [layer[name] for layer in caches["kv_cache"] for name in ("k", "v")]

    return Case("mgx/Matrix-Game-2", build, roll)


CASES = {
    "Self-Forcing": _self_forcing(-1),
    "Self-Forcing, sink and window": _self_forcing(4),
    "CausVid": _causvid(),
    "LongLive 2": _longlive(),
    "Rolling Forcing": _rolling(),
    "Matrix-Game 2": _matrix_game(),
    "SkyReels-V2, diffusion forcing": _skyreels(),
}
