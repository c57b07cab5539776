"""Linears in 16 and in 8 bits, rounding included: ``python tests/benchmarks/fp8_linear.py``.

What is compiled by Inductor is a norm and the linear behind it, as in a block, so that rounding the input may fuse.
Ways are the linear as it is; in 8 bits with weights that are rounded already, as the pass keeps them; in 8 bits with
weights rounded in the call; and the rounding of the input alone. Milliseconds are medians, the ways of a shape in turn.
Without a GPU, ``--rows 64 --shapes 64x64`` is enough to wait for; that shows that the ways run, and not how fast.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from ways_timing import DEVICE, arguments, medians, say

EIGHT_BITS, LARGEST, LEAST = torch.float8_e4m3fn, 448.0, 448.0 * 2.0**-126
SHAPES = ("2048x2048", "2048x8192", "8192x2048", "3072x3072", "3072x14336", "14336x3072")
"""Features in and out: of WorldPlay 8B, then of Matrix-Game 5B."""

Way = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def rounded(value: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers in 8 bits and the scale of each row, as the pass writes them."""
    wide = value.float()
    scales = wide.abs().amax(-1, keepdim=True).clamp_min(LEAST) / LARGEST
    return (wide / scales).to(EIGHT_BITS), scales


def sixteen(x: Tensor, weight: Tensor, bias: Tensor, eight: Tensor, scales: Tensor) -> Tensor:
    """The linear as it is."""
    return F.linear(_normed(x), weight, bias)


def kept(x: Tensor, weight: Tensor, bias: Tensor, eight: Tensor, scales: Tensor) -> Tensor:
    """In 8 bits, with the rounded weight at hand."""
    return _product(*rounded(_normed(x)), bias, eight, scales)


def in_call(x: Tensor, weight: Tensor, bias: Tensor, eight: Tensor, scales: Tensor) -> Tensor:
    """In 8 bits, with the weight rounded as well."""
    return _product(*rounded(_normed(x)), bias, *rounded(weight))


def fast(x: Tensor, weight: Tensor, bias: Tensor, eight: Tensor, scales: Tensor) -> Tensor:
    """As :func:`kept`, added up with fewer bits."""
    return _product(*rounded(_normed(x)), bias, eight, scales, fast_accumulation=True)


def rounding(x: Tensor, weight: Tensor, bias: Tensor, eight: Tensor, scales: Tensor) -> Tensor:
    """The norm and the rounding behind it."""
    return rounded(_normed(x))[0]


WAYS: dict[str, Way] = {
    "16 bits": sixteen,
    "8 bits": kept,
    "8, fast": fast,
    "8, weight too": in_call,
    "rounding": rounding,
}


def _normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def _product(
    values: Tensor, rows: Tensor, bias: Tensor, eight: Tensor, scales: Tensor, fast_accumulation: bool = False
) -> Tensor:
    return torch._scaled_mm(
        values, eight.t(), rows, scales.t(), bias=bias, out_dtype=torch.bfloat16, use_fast_accum=fast_accumulation
    )


def main() -> None:
    """Measure, and print a row for every shape and number of rows."""
    given = arguments(__doc__, SHAPES, rows=[6240, 12480, 18720], repeats=50)
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    say(f"{device}, torch {torch.__version__}, bfloat16; milliseconds, and the error of 8 bits beside float32")
    say(f"{'features':>12} {'rows':>6} " + " ".join(f"{name:>14}" for name in WAYS) + f" {'speed':>6} {'error':>7}")
    for shape in given.shapes:
        features, outputs = map(int, shape.split("x"))
        for rows in given.rows:
            _row(features, outputs, rows, given.repeats)


def _row(features: int, outputs: int, rows: int, repeats: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(rows, features, device=DEVICE, dtype=torch.bfloat16)
    weight = torch.randn(outputs, features, device=DEVICE, dtype=torch.bfloat16) / features**0.5
    bias = torch.randn(outputs, device=DEVICE, dtype=torch.bfloat16)
    operands = (x, weight, bias, *rounded(weight))
    torch._dynamo.reset()
    ways = {name: torch.compile(way, dynamic=False) for name, way in WAYS.items()}
    exact = F.linear(_normed(x).float(), weight.float(), bias.float())
    error = float((ways["8 bits"](*operands).float() - exact).norm() / exact.norm())
    spent = medians(ways, operands, repeats)
    speed = spent["16 bits"] / spent["8 bits"]
    cells = " ".join(f"{spent[name]:14.3f}" for name in ways)
    say(f"{f'{features}x{outputs}':>12} {rows:6} {cells} {speed:6.2f} {error:7.4f}")


if __name__ == "__main__":
    with torch.no_grad():
        main()
