"""``lightint::mixed_linear`` and ``linear_of_parts``: the kernels against float64, and against products in float32."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mixed_cases import CASES, LARGE, operands
from torch.nn import functional as F

from lightint_compile.errors import InputError
from lightint_compile.kernels import mixed_linear as kernels
from lightint_compile.kernels.mixed_linear import linear_of_parts, mixed_linear, obstacle

SUPPORT = Path(__file__).parents[1] / "support"
lightint = torch.ops.lightint


@pytest.mark.parametrize("name", CASES)
def test_it_is_a_linear_in_float32(name: str) -> None:
    x, parts, weight, bias = operands(CASES[name])
    expected = F.linear(x, weight.float(), bias)
    assert torch.equal(mixed_linear(x, weight, bias), expected)
    assert torch.equal(linear_of_parts(parts, weight, bias), expected)
    assert torch.equal(mixed_linear(x[None, :, None], weight, bias), expected[None, :, None])


def test_operator_contract() -> None:
    for case in CASES.values():
        x, parts, weight, bias = operands(case)
        torch.library.opcheck(lightint.mixed_linear.default, (x, weight, bias))
        torch.library.opcheck(lightint.linear_of_parts.default, (parts, weight, bias))


def test_the_kernel_interpreted_is_as_exact_as_float32() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, str(SUPPORT / "mixed_interpreted.py")]
    found = subprocess.run(command, capture_output=True, text=True, cwd=SUPPORT, timeout=300)
    assert found.returncode == 0, found.stderr
    errors = json.loads(found.stdout)
    assert set(errors) == set(CASES) and max(errors.values()) < 5e-7, errors


@pytest.mark.parametrize("rows", [0, 256])
def test_autocast_around_a_call_rounds_nothing(rows: int) -> None:
    x, parts, weight, bias = operands(CASES["whole tiles"])
    expected = F.linear(x[:rows], weight.float(), bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        of_parts = lightint.linear_of_parts([part[:rows] for part in parts], weight, bias)
        for ours in (mixed_linear(x[:rows], weight, bias), of_parts):
            assert torch.equal(ours, expected) and ours.dtype is torch.float32


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weight": torch.zeros(8, 16)}, "weight"),
        ({"weight": torch.zeros(8, 15, dtype=torch.bfloat16)}, "input"),
        ({"input": torch.zeros(4, 16, dtype=torch.float64)}, "input"),
        ({"bias": torch.zeros(9)}, "bias"),
        ({"bias": torch.zeros(8, dtype=torch.bfloat16)}, "bias"),
    ],
)
def test_tensors_that_do_not_fit(change: dict[str, Any], named: str) -> None:
    given = {"input": torch.zeros(4, 16), "weight": torch.zeros(8, 16, dtype=torch.bfloat16), "bias": torch.zeros(8)}
    with pytest.raises(InputError, match=named):
        mixed_linear(**{**given, **change})


def test_there_is_no_gradient() -> None:
    x = torch.zeros(4, 16, requires_grad=True)
    with pytest.raises(InputError, match="no gradient"):
        mixed_linear(x, torch.zeros(8, 16, dtype=torch.bfloat16)).sum().backward()


def test_a_cpu_gains_nothing() -> None:
    assert "gains nothing" in obstacle(torch.device("cpu"))


def test_rows_that_share_memory_are_not_for_the_sm_90_kernel() -> None:
    pytest.importorskip("triton.experimental.gluon")
    from lightint_compile.kernels.hopper.mixed_linear import fits

    row = torch.zeros(1, 64, dtype=torch.bfloat16)
    assert fits([row, row.repeat(3, 1)]) and not fits([row.expand(3, 64)])
    assert not fits([torch.zeros(128, dtype=torch.bfloat16).unfold(0, 64, 8)])


@pytest.mark.gpu
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("name", [*CASES, *LARGE])
def test_on_a_gpu_it_is_at_least_as_exact_as_float32(name: str, positive: bool) -> None:
    """Sums of positive numbers are where tensor cores, which cut off, drift the most."""
    x, parts, weight, bias = operands({**CASES, **LARGE}[name], "cuda", positive)
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    plain = F.linear(x, weight.float(), bias)
    for ours in (*by_each_kernel(parts, weight, bias), mixed_linear(x, weight, bias)):
        error, bound = ((each.double() - exact).norm() / exact.norm() for each in (ours, plain))
        assert ours.shape == plain.shape and error <= max(float(bound), 1.5e-7)


def by_each_kernel(parts: list[torch.Tensor], weight: torch.Tensor, bias: torch.Tensor | None) -> list[torch.Tensor]:
    """The product by the portable kernel, and by what the operator chooses; what was not written is NaN."""
    from lightint_compile.kernels.portable import mixed_linear as portable

    out = torch.full((parts[0].shape[0], weight.shape[0]), float("nan"), device="cuda")
    portable.linear_of_parts(parts, weight, bias, out)
    return [out, lightint.linear_of_parts(parts, weight, bias)]


@pytest.mark.gpu
def test_on_a_gpu_autocast_around_a_call_without_rows_keeps_the_dtype() -> None:
    x, _, weight, bias = operands(CASES["whole tiles"], "cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert mixed_linear(x[:0], weight, bias).dtype is torch.float32


class Fake:
    """A module with a kernel, which counts its calls and may fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.calls = error, 0

    def fits(self, matrices: Any) -> bool:
        return matrices[0].shape[1] % 8 == 0

    def linear_of_parts(self, parts: Any, weight: Any, bias: Any, out: torch.Tensor) -> None:
        self.calls += 1
        if self.error is not None:
            raise self.error
        out.fill_(1.0)


def test_a_kernel_that_fails_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    portable = pytest.importorskip("lightint_compile.kernels.portable.mixed_linear")
    slower = Fake()
    monkeypatch.setattr(portable, "linear_of_parts", slower.linear_of_parts)
    monkeypatch.setattr(kernels, "_failed", set())
    for own, expected in ((Fake(), 0), (Fake(RuntimeError("no such instruction")), 2)):
        monkeypatch.setattr(kernels, "_hopper", lambda device, own=own: own)
        _, parts, weight, bias = operands(CASES["ragged everywhere"])
        for _ in range(2):
            kernels._fill(parts, weight, bias, out := torch.zeros(parts[0].shape[0], weight.shape[0]))
            assert out.eq(1).all()
        assert slower.calls == expected
    assert own.calls == 1 and caplog.text.count("no such instruction") == 1
    kernels._fill(*operands(CASES["odd features"])[1:], out)  # what the kernel does not take goes past it
    assert own.calls == 1 and slower.calls == 3


def test_memory_that_runs_out_is_no_fault_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(kernels, "_failed", set())
    monkeypatch.setattr(kernels, "_hopper", lambda device: Fake(torch.OutOfMemoryError("none left")))
    _, parts, weight, bias = operands(CASES["ragged everywhere"])
    with pytest.raises(torch.OutOfMemoryError):
        kernels._fill(parts, weight, bias, torch.zeros(parts[0].shape[0], weight.shape[0]))
    assert not kernels._failed


@pytest.mark.gpu
def test_on_an_sm_90_device_its_own_kernel_runs() -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs compute capability 9.0")
    hopper = kernels._hopper(torch.device("cuda", 0))
    assert hopper is not None
    for name, taken in (("ragged everywhere", True), ("odd features", False)):
        _, parts, weight, bias = operands(CASES[name], "cuda")
        lightint.linear_of_parts(parts, weight, bias)
        assert hopper.fits((*parts, weight)) is taken and not kernels._failed


@pytest.mark.gpu
def test_on_a_gpu_views_and_odd_addresses_are_taken_as_they_are() -> None:
    x, _, weight, bias = operands(CASES["ragged everywhere"], "cuda")
    wide = torch.empty(x.shape[0], x.shape[1] + 3, device="cuda")
    wide[:, 3:] = x
    held = torch.empty(weight.numel() + 1, dtype=weight.dtype, device="cuda")
    odd = held[1:].view_as(weight).copy_(weight)
    expected = mixed_linear(x, weight, bias)
    for given in (wide[:, 3:], x.T.contiguous().T):
        torch.testing.assert_close(mixed_linear(given, odd, bias), expected, rtol=1e-6, atol=1e-6)
    row = x[:1].bfloat16()
    repeated = lightint.linear_of_parts([row.expand(300, -1)], weight[:1].expand(16, -1), None)
    one = lightint.linear_of_parts([row], weight[:1], None)
    torch.testing.assert_close(repeated, one.expand(300, 16), rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
def test_on_a_gpu_the_pass_asks_whether_tf32_is_allowed(one_thread: None) -> None:
    from islands import island

    import lightint_compile

    module, x = island().cuda(), torch.randn(512, 64, device="cuda")
    exact = F.linear(x.double(), module.weight.double(), module.bias.double())
    told = []
    for precision in ("highest", "high"):
        torch._dynamo.reset()
        torch.set_float32_matmul_precision(precision)
        try:
            compiled = torch.compile(module, backend="lightint", options={"preset": "exact"})
            with torch.no_grad():
                error = (compiled(x).double() - exact).norm() / exact.norm()
        finally:
            torch.set_float32_matmul_precision("highest")
        said = lightint_compile.report(compiled).to_dict()
        told.append(("TF32 is allowed" in str(said), bool(error < 1e-6)))
    assert told[0] == (False, True) and told[1][0]
