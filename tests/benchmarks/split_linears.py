"""Linears in float32 over weights in bfloat16, by several ways: ``python tests/benchmarks/split_linears.py``.

What is compiled by Inductor is a norm and the linear behind it, as in a block, so that splitting the input may fuse.
Ways are the weight widened and a product in float32; the same in TF32; the parts of the input on tensor cores, as the
pass computes them, by the kernel of the device and by the portable one; and input and weight in bfloat16, which rounds.
Milliseconds are medians, the ways of a shape in turn. Errors are relative (L2), beside float64.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lightint_compile.kernels import mixed_linear
from lightint_compile.kernels.portable import mixed_linear as portable_kernel

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from ways_timing import arguments, medians, say

SHAPES = ("3072x3072", "2048x2048", "5120x5120", "3072x14336")
"""Features in and out: of Matrix-Game 5B, of WorldPlay 8B, of Wan 14B; and of a feed-forward layer."""

Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def in_float32(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The weight widened, and the product in float32."""
    return F.linear(_normed(x), weight.float(), bias)


def in_tf32(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same in the 10 bits that TF32 keeps; a function of its own, since it is compiled under another setting."""
    return F.linear(_normed(x), weight.float(), bias)


def in_parts(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The parts of the input, by the kernel that the device has."""
    return torch.ops.lightint.linear_of_parts(mixed_linear.split(_normed(x)), weight, bias)


def portable(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same by the portable kernel."""
    return torch.ops.lightint.portable_linear_of_parts(mixed_linear.split(_normed(x)), weight, bias)


def narrow(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Input and result rounded to bfloat16."""
    return F.linear(_normed(x).bfloat16(), weight, bias.bfloat16()).float()


WAYS: dict[str, Way] = {
    "float32": in_float32,
    "TF32": in_tf32,
    "parts": in_parts,
    "portable": portable,
    "bfloat16": narrow,
}


def _normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def main() -> None:
    """Measure, and print a row for every shape and number of rows."""
    given = arguments(__doc__, SHAPES, rows=[8800, 16720], repeats=20)
    assert portable_kernel.TILE  # registers the portable operator
    say(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; milliseconds, then relative errors")
    say(f"{'features':>12} {'rows':>6} " + " ".join(f"{name:>9}" for name in WAYS) + "  speed  TFLOP/s  errors")
    for shape in given.shapes:
        features, outputs = map(int, shape.split("x"))
        for rows in given.rows:
            _row(features, outputs, rows, given.repeats)


def _row(features: int, outputs: int, rows: int, repeats: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(rows, features, device="cuda")
    weight = (torch.randn(outputs, features, device="cuda") / features**0.5).bfloat16()
    bias = torch.randn(outputs, device="cuda")
    torch._dynamo.reset()
    ways = {name: _under(name, torch.compile(way, dynamic=False)) for name, way in WAYS.items()}
    exact = F.linear(_normed(x).double(), weight.double(), bias.double())
    errors = [float((way(x, weight, bias).double() - exact).norm() / exact.norm()) for way in ways.values()]
    spent = medians(ways, (x, weight, bias), repeats)
    cells = " ".join(f"{spent[name]:9.3f}" for name in ways)
    rate = 2e-9 * rows * features * outputs / spent["parts"]
    told = " ".join(f"{error:.1e}" for error in errors)
    say(f"{f'{features}x{outputs}':>12} {rows:6} {cells} {spent['float32'] / spent['parts']:6.2f} {rate:8.0f}  {told}")


def _under(name: str, way: Way) -> Way:
    """``way``, run with the precision of products that its name says."""

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        torch.set_float32_matmul_precision("high" if name == "TF32" else "highest")
        return way(x, weight, bias)

    return run


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("a CPU has no tensor cores to compare with: run this on a machine with a CUDA device")
    with torch.no_grad():
        main()
