"""narrow-linears: only products over weights of bfloat16 change, by no more than the rounding of bfloat16."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from differential import feeds_of, rewritten, run, trace
from islands import Island, at_other_rows, float64_of, island
from torch import Tensor, nn
from torch.nn import functional as F

import lightint_compile
from lightint_compile.options.presets import PRESETS
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import Numerics, RemarkKind

PASS = "narrow-linears"
aten = torch.ops.aten


def dtypes(program: Program) -> list[torch.dtype]:
    return [node.args[0].meta["val"].dtype for node in program.calls(aten.linear.default)]


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_it_runs_in_bfloat16_within_its_rounding(given: torch.dtype, bias: bool) -> None:
    module, x = island(bias=bias), torch.randn(2, 256, 64).to(given)
    program = trace(module, {"x": x})
    copy, result = rewritten(program, PASS)
    assert dtypes(program) == [torch.float32] and dtypes(copy) == [torch.bfloat16]
    (remark,) = result.remarks
    assert remark.kind is RemarkKind.APPLIED and remark.numerics is Numerics.APPROXIMATE
    (ours,), exact = run(copy, feeds_of(module, {"x": x})), float64_of(module, x)
    assert ours.dtype is torch.float32
    error = (ours.double() - exact).norm() / exact.norm()
    assert error < 2**-8
    again = rewritten(copy, PASS)[1]
    assert not again.modified and again.remarks == ()


def test_an_input_that_was_widened_is_not_rounded() -> None:
    module, x = island(), torch.randn(512, 64).bfloat16()
    copy, _ = rewritten(trace(module, {"x": x}), PASS)
    casts = [node.kwargs["dtype"] for node in copy.calls(aten._to_copy.default)]
    assert casts == [torch.float32]  # of the result


def test_a_bias_of_more_bits_is_added_in_float32() -> None:
    class WideBias(Island):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight.float(), self.shift)

    module = WideBias(64, 48).bfloat16().requires_grad_(False)
    module.shift = nn.Parameter(torch.full((48,), 1 + 2**-20), requires_grad=False)
    x = torch.zeros(512, 64)
    copy, _ = rewritten(trace(module, {"x": x}), PASS)
    assert dtypes(copy) == [torch.bfloat16]
    (ours,) = run(copy, feeds_of(module, {"x": x}))
    assert torch.equal(ours, module(x))


@pytest.mark.parametrize(
    ("make", "rows", "reason"),
    [
        (lambda: island(torch.float32), 512, None),  # float32 is what the weights are
        (lambda: island(wide=torch.float64), 512, None),  # wider than any kernel here gives
        (lambda: island(torch.float16), 512, "stored in float16"),
        (lambda: island(), 255, "255 rows, fewer than 256"),
    ],
)
def test_one_edit_away_nothing_changes(make: Callable[[], Island], rows: int, reason: str | None) -> None:
    program = trace(make(), {"x": torch.randn(rows, 64)})
    copy, result = rewritten(program, PASS)
    assert not result.modified and dtypes(copy) == dtypes(program)
    assert [reason in each.message for each in result.remarks if reason] == ([True] if reason else [])
    assert bool(result.remarks) == (reason is not None)


def test_rows_may_be_any_number() -> None:
    for ours, _, exact in at_other_rows(PASS):
        assert (ours.double() - exact).norm() / exact.norm() < 2**-8


def test_fewer_rows_by_an_option() -> None:
    copy, result = rewritten(trace(island(), {"x": torch.randn(4, 64)}), f"{PASS}{{min-rows=4}}")
    assert result.modified and dtypes(copy) == [torch.bfloat16]


def test_no_preset_runs_it_and_a_pipeline_does(one_thread: None) -> None:
    assert not any(PASS in preset.passes for preset in PRESETS.values())
    module, x = nn.Sequential(island(), nn.SiLU()), torch.randn(512, 64)
    exact = torch.compile(module, backend="lightint", options={"preset": "exact"})
    narrow = torch.compile(module, backend="lightint", options={"passes": f"{PASS},outline-regions"})
    assert torch.equal(exact(x), module(x))
    torch._dynamo.reset()
    assert not torch.equal(narrow(x), module(x))
    assert f"{PASS} [linear]" in str(lightint_compile.report(narrow))
