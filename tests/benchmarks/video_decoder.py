"""Video decoders chunk by chunk at released sizes: ``python tests/benchmarks/video_decoder.py --vae wan-2.1``.

Random weights, in bfloat16 on a GPU and in float32 on a CPU, where ``--height 64 --width 64`` is enough to wait for.
Milliseconds are medians over the chunks behind the second; a way is ``eager``, or a backend of ``torch.compile``, with
``/last`` behind it where convolutions have their channels last.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import torch
from diffusers.models import autoencoders
from torch import Tensor

import lightint_compile

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
VAES: dict[str, tuple[str, dict[str, Any], int]] = {
    "hunyuan-1.5": ("AutoencoderKLHunyuanVideo15", {}, 16),
    "wan-2.1": ("AutoencoderKLWan", {}, 8),
    "wan-2.2": (
        "AutoencoderKLWan",
        {"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "in_channels": 12, "out_channels": 12}
        | {"is_residual": True, "patch_size": 2, "scale_factor_spatial": 16}
        | {"latents_mean": [0.0] * 48, "latents_std": [1.0] * 48},
        16,
    ),
}
"""Class, what differs from its defaults, and video pixels a latent one."""


def main() -> None:
    """Measure and print a line a way."""
    given = _arguments()
    name, settings, scale = VAES[given.vae]
    torch.manual_seed(0)
    with torch.device(DEVICE):
        vae = getattr(autoencoders, name)(**settings).to(DTYPE).eval().requires_grad_(False)
    channels = vae.config.get("latent_channels") or vae.config.z_dim
    shape = (1, channels, given.chunk * given.chunks, given.height // scale, given.width // scale)
    latents = torch.randn(shape, generator=torch.Generator(DEVICE).manual_seed(1), device=DEVICE, dtype=DTYPE)
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    _say(f"{device}, torch {torch.__version__}, {given.vae}, latents {list(shape)}")
    with torch.no_grad():
        expected = _whole(vae, latents[:, :, : 2 * given.chunk])
        for way in given.ways:
            _measure(way, vae, latents.split(given.chunk, 2), expected, given.repeats, given.kernels)


def _whole(vae: Any, latents: Tensor) -> Tensor:
    vae.decode(latents)
    _wait()
    start = time.perf_counter()
    frames: Tensor = vae.decode(latents).sample
    _wait()
    _say(f"whole, {latents.shape[2]} latent frames at once: {1e3 * (time.perf_counter() - start):.0f} ms")
    return frames


def _measure(way: str, vae: Any, chunks: Any, expected: Tensor, repeats: int, kernels: int) -> None:
    backend, _, layout = way.partition("/")
    memory_format = torch.channels_last_3d if layout == "last" else torch.contiguous_format
    decoder: Any = lightint_compile.streaming_decoder(vae, memory_format=memory_format)
    torch._dynamo.reset()
    if backend != "eager":
        decoder = torch.compile(decoder, backend=backend)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    warm, _, _ = _rollout(decoder, chunks)
    taken: list[float] = []
    for _ in range(repeats):
        _, times, frames = _rollout(decoder, chunks)
        taken += times[2:]
    if kernels:
        _tell_kernels(decoder, chunks, kernels)
    made = torch.cat(frames[:2], 2)
    error = ((made - expected).float().norm() / expected.float().norm()).item()
    peak = f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB, " if DEVICE == "cuda" else ""
    _say(
        f"{way}: {statistics.median(taken):.1f} ms a chunk ({min(taken):.1f} to {max(taken):.1f}), first rollout "
        f"{warm:.0f} s, {peak}{error:.1e} from the whole"
    )


def _tell_kernels(decoder: Any, chunks: Any, count: int) -> None:
    """Milliseconds of the longest kernels of a late chunk."""
    _, state = decoder(chunks[0])
    _, state = decoder(chunks[1], state)
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CUDA if DEVICE == "cuda" else activity.CPU]) as profile:
        decoder(chunks[2], state)
        _wait()
    taken = [(each.self_device_time_total or each.self_cpu_time_total, each) for each in profile.key_averages()]
    for spent, each in sorted(taken, key=lambda pair: -pair[0])[:count]:
        _say(f"  {spent / 1e3:8.2f} ms in {each.count:3} of {each.key[:100]}")


def _rollout(decoder: Any, chunks: Any) -> tuple[float, list[float], list[Tensor]]:
    """Seconds of all chunks, milliseconds of each, and the frames of the first two."""
    state, times, frames, begin = None, [], [], time.perf_counter()
    for chunk in chunks:
        _wait()
        start = time.perf_counter()
        made, state = decoder(chunk, state)
        _wait()
        times.append(1e3 * (time.perf_counter() - start))
        frames = [*frames, made][:2]
    return time.perf_counter() - begin, times, frames


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="video_decoder", description=__doc__)
    parser.add_argument("--vae", choices=VAES, default="hunyuan-1.5")
    parser.add_argument("--ways", nargs="*", default=["eager", "eager/last", "inductor", "lightint", "lightint/last"])
    parser.add_argument("--chunk", type=int, default=4, help="latent frames")
    parser.add_argument("--chunks", type=int, default=6)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kernels", type=int, default=0, metavar="N", help="also the N longest kernels of a chunk")
    return parser.parse_args()


if __name__ == "__main__":
    main()
