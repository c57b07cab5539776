"""Causal convolutions of video decoders, by several ways: ``python tests/benchmarks/causal_convs.py``.

Each is 3 x 3 x 3 over frames that are padded already, as a decoder calls it for a chunk. Ways are the library's 3-D
convolution, contiguous and with channels last, as it chooses an algorithm and as it tries them out; one 2-D convolution
of each frame beside its two earlier ones as further channels, which is the same sum; and three 2-D convolutions of
frames, whose results are added in the dtype of the weights, which rounds. A product of two matrices as wide as what one
result reads says what the device can do at best. Milliseconds are medians, the ways of a shape in turn; TFLOP/s count
the convolution. Errors are relative (L2), beside float32. Random weights and inputs, bfloat16 on a GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from ways_timing import DEVICE, medians, say

DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
SHAPES = (
    "512x512x16x120x208",
    "256x256x16x240x416",
    "128x128x16x480x832",
    "1024x4096x8x60x104",
    "512x512x40x176x320",
    "256x256x40x352x640",
)
"""Channels in and out, frames, height and width: four of HunyuanVideo-1.5 at 480p, two of Wan 2.2 at 720p."""

ROWS = 65536
"""Of the left matrix of a product; it is as wide as what one result of the convolution reads."""

PRODUCT = "a product of two matrices"

Way = Callable[[Tensor, Tensor], Tensor]


def whole(x: Tensor, weight: Tensor, *, tried: bool = False) -> Tensor:
    """The library's convolution, in the layout of its operands."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=tried):
        return F.conv3d(x, weight)


def as_channels(x: Tensor, weight: Tensor) -> Tensor:
    """One 2-D convolution of all frames; earlier frames are channels."""
    taps, frames = weight.shape[2], x.shape[2] - weight.shape[2] + 1
    by_frame = x[0].transpose(0, 1)
    seen = torch.cat([by_frame[tap : tap + frames] for tap in range(taps)], 1)
    flat = weight.transpose(1, 2).flatten(1, 2).contiguous(memory_format=torch.channels_last)
    return F.conv2d(seen.contiguous(memory_format=torch.channels_last), flat).transpose(0, 1)[None]


def by_tap(x: Tensor, weight: Tensor) -> Tensor:
    """A 2-D convolution of all frames for each tap in time, added up."""
    taps, frames = weight.shape[2], x.shape[2] - weight.shape[2] + 1
    by_frame = x[0].transpose(0, 1)
    made = [F.conv2d(by_frame[tap : tap + frames], weight[:, :, tap]) for tap in range(taps)]
    return torch.stack(made).sum(0).transpose(0, 1)[None]


def main() -> None:
    """Measure and print a line a way."""
    given = _arguments()
    say(f"{torch.cuda.get_device_name() if DEVICE == 'cuda' else 'CPU'}, torch {torch.__version__}, {DTYPE}")
    for shape in given.shapes:
        _measure(shape, given.repeats)


def _measure(shape: str, repeats: int) -> None:
    width_in, width_out, frames, height, width = map(int, shape.split("x"))
    torch.manual_seed(0)
    x = torch.randn(1, width_in, frames + 2, height + 2, width + 2, device=DEVICE, dtype=DTYPE)
    weight = torch.randn(width_out, width_in, 3, 3, 3, device=DEVICE, dtype=DTYPE) * (27 * width_in) ** -0.5
    last = {"memory_format": torch.channels_last_3d}
    x_last, weight_last = x.contiguous(**last), weight.contiguous(**last)
    ways: dict[str, tuple[Way, Tensor, Tensor]] = {
        "3-D": (whole, x, weight),
        "3-D, tried out": (partial(whole, tried=True), x, weight),
        "3-D, channels last": (whole, x_last, weight_last),
        "3-D, channels last, tried out": (partial(whole, tried=True), x_last, weight_last),
        "2-D, frames as channels": (as_channels, x_last, weight_last),
        "2-D, a tap each": (by_tap, x_last, weight_last),
    }
    operations = 2 * 27 * width_in * width_out * frames * height * width
    left = torch.randn(ROWS, 27 * width_in, device=DEVICE, dtype=DTYPE)
    right = torch.randn(27 * width_in, width_out, device=DEVICE, dtype=DTYPE)
    calls = {name: partial(_called, way, *operands) for name, (way, *operands) in ways.items()}
    product = partial(torch.matmul, left, right)
    taken = medians({**calls, PRODUCT: product}, (), repeats)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = F.conv3d(x[:, :, :4].float(), weight.float())
    say(f"{shape}, {operations / 1e12:.2f} TFLOP")
    for name, call in calls.items():
        error = _error(call()[:, :, :2], expected)
        say(f"  {name:<30} {taken[name]:8.2f} ms, {_rate(operations, taken[name])}, {error:.1e} from float32")
    say(f"  {PRODUCT:<30} {_rate(2 * left.numel() * width_out, taken[PRODUCT]):>28}")


def _rate(operations: int, milliseconds: float) -> str:
    return f"{operations / milliseconds / 1e9:6.0f} TFLOP/s"


def _called(way: Way, x: Tensor, weight: Tensor) -> Tensor:
    return way(x, weight)


def _error(made: Tensor, expected: Tensor) -> float:
    return ((made.float() - expected).norm() / expected.norm()).item()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="in x out x frames x height x width")
    parser.add_argument("--repeats", type=int, default=10)
    return parser.parse_args()


if __name__ == "__main__":
    main()
