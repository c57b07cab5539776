"""Video transformers of diffusers at released widths: ``python tests/benchmarks/video_transformers.py``.

Every model has a few of its blocks, all of whose kinds are there, and the sizes of a released video. Ways are Inductor
and presets of lightint; all are compiled in one process and called in turn. Milliseconds are by the clock, so what the
host does counts: the median, and the lowest and highest of all. Differences are relative L2 to Inductor. Random
weights, in bfloat16 on a GPU; on a CPU in float32, where ``--small`` is enough to wait for.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor, nn

import lightint_compile  # noqa: F401  (its backend)
from lightint_compile.models.random_weights import fill_random

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from ways_timing import DEVICE, say

DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
WAN_5B = {"num_attention_heads": 24, "ffn_dim": 14336, "in_channels": 48, "out_channels": 48}


class Model(NamedTuple):
    """A class of diffusers, what differs from its defaults, its blocks, its latents and its other arguments."""

    kind: str
    settings: dict[str, Any]
    depth: dict[str, int]
    latents: tuple[int, ...]
    given: Callable[[tuple[int, ...]], dict[str, Any]]


def _normal(*shape: int, dtype: torch.dtype = DTYPE) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=torch.float32).to(dtype)


def _text(length: int, width: int) -> dict[str, Tensor]:
    return {"encoder_hidden_states": _normal(1, length, width)}


def _step(*shape: int) -> dict[str, Tensor]:
    return {"timestep": torch.full(shape, 500.0, device=DEVICE)}


def _wan(_: tuple[int, ...]) -> dict[str, Any]:
    return _text(512, 4096) | _step(1)


def _wan_each_token(latents: tuple[int, ...]) -> dict[str, Any]:
    """A video that goes on from an image: the tokens of its first frame have time 0."""
    frames, height, width = latents[2:]
    times = torch.full((frames, height * width // 4), 500.0, device=DEVICE)
    times[0] = 0.0
    return _text(512, 4096) | {"timestep": times.reshape(1, -1)}


def _hunyuan(_: tuple[int, ...]) -> dict[str, Any]:
    seen = (torch.arange(256, device=DEVICE) < 100).long()[None]
    guidance = torch.full((1,), 6000.0, device=DEVICE, dtype=DTYPE)
    more = {"encoder_attention_mask": seen, "pooled_projections": _normal(1, 768), "guidance": guidance}
    return _text(256, 4096) | _step(1) | more


def _cogvideox(latents: tuple[int, ...]) -> dict[str, Any]:
    frames, height, width = latents[1], latents[3] // 2, latents[4] // 2
    angles = _normal(frames * height * width, 64, dtype=torch.float32)
    return _text(226, 4096) | _step(1) | {"image_rotary_emb": (angles.cos(), angles.sin())}


def _ltx(latents: tuple[int, ...], grid: tuple[int, int, int]) -> dict[str, Any]:
    assert latents[1] == grid[0] * grid[1] * grid[2]
    seen = torch.ones(1, 128, dtype=torch.long, device=DEVICE)
    sizes = dict(zip(("num_frames", "height", "width"), grid, strict=True))
    return _text(128, 4096) | _step(1) | {"encoder_attention_mask": seen, **sizes}


MODELS = {
    "wan-2.1-1.3b": Model(
        "WanTransformer3DModel", {"num_attention_heads": 12, "ffn_dim": 8960}, {"num_layers": 4},
        (1, 16, 21, 60, 104), _wan,
    ),
    "wan-2.2-5b": Model("WanTransformer3DModel", WAN_5B, {"num_layers": 4}, (1, 48, 31, 44, 80), _wan_each_token),
    "skyreels-v2-1.3b": Model(
        "SkyReelsV2Transformer3DModel", {"num_attention_heads": 12, "ffn_dim": 8960}, {"num_layers": 4},
        (1, 16, 25, 68, 120), _wan,
    ),
    "hunyuan-video": Model(
        "HunyuanVideoTransformer3DModel", {}, {"num_layers": 2, "num_single_layers": 4}, (1, 16, 16, 60, 104), _hunyuan
    ),
    "cogvideox-5b": Model(
        "CogVideoXTransformer3DModel", {"num_attention_heads": 48, "use_rotary_positional_embeddings": True},
        {"num_layers": 4}, (1, 13, 16, 60, 90), _cogvideox,
    ),
    "ltx-video": Model(
        "LTXVideoTransformer3DModel", {}, {"num_layers": 8}, (1, 16 * 16 * 24, 128), partial(_ltx, grid=(16, 16, 24))
    ),
}  # fmt: skip
"""Sizes of latents are [B, C, T, H, W]; CogVideoX has its frames in front, and LTX one row of tokens."""

SMALL = {
    "cogvideox-5b": (1, 3, 16, 8, 12),
    "ltx-video": (1, 4 * 4 * 6, 128),
}


def main() -> None:
    """Measure and print a line a way."""
    given = _arguments()
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    say(f"{device}, torch {torch.__version__}, diffusers {diffusers.__version__}, medians of {given.repeats}")
    with torch.no_grad():
        for name in given.models:
            _measure(name, given)


def _made(name: str, small: bool) -> tuple[nn.Module, dict[str, Any], Tensor]:
    """A model, its arguments besides the latents, and these."""
    model = MODELS[name]
    latents, given = model.latents, model.given
    if small:
        latents = SMALL.get(name, (*latents[:2], 3, 8, 12))
        given = partial(_ltx, grid=(4, 4, 6)) if name == "ltx-video" else given
    torch.manual_seed(0)
    with torch.device(DEVICE):
        module = fill_random(getattr(diffusers, model.kind)(**model.settings, **model.depth))
    _narrow(module)
    return module.eval().requires_grad_(False), {"return_dict": False, **given(latents)}, _normal(*latents)


def _narrow(model: Any) -> None:
    """Parameters and buffers as ``from_pretrained(torch_dtype=...)`` has them: some modules stay in float32."""
    kept = model._keep_in_fp32_modules or ()
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_floating_point() and not set(kept) & set(name.split(".")):
            value.data = value.data.to(DTYPE)


def _measure(name: str, given: argparse.Namespace) -> None:
    module, more, latents = _made(name, given.small)
    calls: dict[str, Callable[[], Tensor]] = {}
    for way in given.ways:
        torch._dynamo.reset()
        calls[way] = _warm(way, module, more, latents)
    first, spent = calls[given.ways[0]](), _in_turn(calls, given.repeats)
    base = statistics.median(spent[given.ways[0]])
    for way, taken in spent.items():
        off = float((calls[way]() - first).norm() / first.norm())
        median = statistics.median(taken)
        spread = f"{min(taken):.2f} to {max(taken):.2f}"
        say(f"{name:18s} {way:10s} {median:9.2f} ms ({spread}), {base / median:.3f}x, difference {off:.1e}")


def _warm(way: str, module: nn.Module, more: dict[str, Any], latents: Tensor) -> Callable[[], Tensor]:
    options = {} if way == "inductor" else {"options": {"preset": way}}
    compiled = torch.compile(module, backend="inductor" if way == "inductor" else "lightint", **options)

    def call() -> Tensor:
        result: Tensor = compiled(latents, **more)[0]
        return result.float()

    start = time.perf_counter()
    for _ in range(3):
        call()
    say(f"{way} is warm after {time.perf_counter() - start:.0f} s")
    return call


def _in_turn(calls: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each way; every round calls all of them."""
    spent: dict[str, list[float]] = {way: [] for way in calls}
    for _ in range(repeats):
        for way, call in calls.items():
            spent[way].append(_milliseconds(call))
    return spent


def _milliseconds(call: Callable[[], Any]) -> float:
    _wait()
    start = time.perf_counter()
    call()
    _wait()
    return 1e3 * (time.perf_counter() - start)


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--ways", nargs="+", default=["inductor", "exact"], help="inductor, and presets of lightint")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--small", action="store_true", help="small latents, to see that it runs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
