"""Attention with wide heads by products and by PyTorch's operator: ``python tests/benchmarks/wide_heads.py``.

Medians in milliseconds on one GPU, bfloat16, both compiled into one call each and warmed up, in turns.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from lightint_compile.kernels.wide_heads import wide_attention

CASES = {
    "HunyuanVideo-1.5, a latent frame at 480p, third chunk": (1, 1, 1560, 16_380, 1024),
    "the same, sixteenth chunk": (1, 1, 1560, 98_280, 1024),
    "Wan 2.1, a frame at 480p": (1, 1, 6240, 6240, 384),
    "the same, four frames": (4, 1, 6240, 6240, 384),
    "an image of 64 x 64 latents": (1, 1, 4096, 4096, 512),
    "an image of 32 x 32 latents": (1, 1, 1024, 1024, 512),
    "an image of 16 x 16 latents": (1, 1, 256, 256, 512),
    "8 heads": (1, 8, 1024, 1024, 320),
}
"""Batch, heads, queries, keys and head_dim."""


def main() -> None:
    """Measure and print a line a case."""
    _say(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for name, (batch, heads, queries, keys, width) in CASES.items():
        draw = torch.Generator("cuda").manual_seed(0)
        query, key, value = (
            torch.randn(batch, heads, rows, width, device="cuda", dtype=torch.bfloat16, generator=draw)
            for rows in (queries, keys, keys)
        )
        ours, theirs = _in_turns(
            lambda q=query, k=key, v=value: wide_attention(q, k, v),
            lambda q=query, k=key, v=value: F.scaled_dot_product_attention(q, k, v),
        )
        rate = 4 * batch * heads * queries * keys * width / ours / 1e9
        _say(f"{name}: {ours:.3f}, torch {theirs:.3f} ({theirs / ours:.2f}), {rate:.0f} TFLOP/s")


def _in_turns(*calls: Callable[[], Tensor], repeats: int = 15) -> list[float]:
    for call in calls:
        call()
        call()
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for place, call in enumerate(calls):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize()
            taken[place].append(begin.elapsed_time(end))
    return list(map(statistics.median, taken))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
