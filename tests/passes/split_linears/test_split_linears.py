"""split-linears: products over weights of bfloat16 take them as they are, and lose nothing that float32 has."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from differential import feeds_of, rewritten, run, trace
from hypothesis import given, settings
from hypothesis import strategies as st
from islands import Island, at_other_rows, island
from torch import Tensor, nn

import lightint_compile
from lightint_compile.kernels.mixed_linear import linear_of_parts, split
from lightint_compile.lowering.cuda_forms import spelled
from lightint_compile.options.presets import PRESETS
from lightint_compile.passes.analysis.attention_sites import AttentionSites
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import Numerics, RemarkKind

PASS = "split-linears{on-cpu=true}"
aten = torch.ops.aten
MIXED = torch.ops.lightint.mixed_linear.default


def products(program: Program) -> list[tuple[torch.dtype, torch.dtype]]:
    """Dtypes of input and weight of each linear by our operator."""
    return [tuple(each.meta["val"].dtype for each in node.args[:2]) for node in program.calls(MIXED)]  # type: ignore[misc]


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_the_weight_is_not_widened_and_the_result_is_the_same(given: torch.dtype, bias: bool) -> None:
    module, x = island(bias=bias), torch.randn(2, 256, 64).to(given)
    program = trace(module, {"x": x})
    copy, result = rewritten(program, PASS)
    assert products(copy) == [(torch.float32, torch.bfloat16)] and not list(copy.calls(aten.linear.default))
    (remark,) = result.remarks
    assert remark.kind is RemarkKind.APPLIED and remark.numerics is Numerics.EXACT
    assert remark.flops_after == remark.flops_before == 2 * 512 * 64 * 48
    (ours,) = run(copy, feeds_of(module, {"x": x}))
    assert ours.dtype is torch.float32 and torch.equal(ours, module(x))
    again = rewritten(copy, PASS)[1]
    assert not again.modified and again.remarks == ()


@pytest.mark.parametrize(("given", "parts"), [(torch.float32, 3), (torch.bfloat16, 1), (torch.float16, 2)])
def test_a_region_splits_an_input_once_into_as_many_parts_as_it_has_bits_for(given: torch.dtype, parts: int) -> None:
    class Projections(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = island(), island()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            wide = x.float()
            return self.query(wide), self.key(wide)

    module, x = Projections().requires_grad_(False), torch.randn(1, 300, 64).to(given)
    copy, _ = rewritten(trace(module, {"x": x}), PASS)
    copy.graph_module = region = spelled(copy.graph_module).graph_module
    nodes = [n for n in region.graph.nodes if n.target is torch.ops.lightint.linear_of_parts.default]
    assert [len(node.args[0]) for node in nodes] == [parts, parts] and nodes[0].args[0] == nodes[1].args[0]
    assert not any(node.target is MIXED for node in region.graph.nodes)
    assert all(map(torch.equal, run(copy, feeds_of(module, {"x": x})), module(x)))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_parts_make_up_every_number(numbers: list[float]) -> None:
    x = torch.tensor(numbers, dtype=torch.float32)
    parts = split(x)
    assert all(part.dtype is torch.bfloat16 for part in parts)
    exact = sum((part.double() for part in parts), torch.zeros(len(numbers), dtype=torch.float64))
    least = 2.0**-133  # of bfloat16: what is smaller has fewer bits
    assert ((exact == x.double()) | ((exact - x.double()).abs() < least) | (exact.isnan() & x.isnan())).all()


def test_numbers_that_are_none_stay_what_they_are() -> None:
    payload = torch.tensor([0x7F800001, 0x7FC00000, 0x7F800000], dtype=torch.int32).view(torch.float32)
    weight = torch.eye(1, dtype=torch.bfloat16)
    found = linear_of_parts([each[:, None] for each in split(payload)], weight, None)
    assert found[:2].isnan().all() and found[2] == float("inf")


def test_values_that_are_not_finite_stay_in_their_rows() -> None:
    module, x = island(), torch.randn(300, 64)
    x[3, 5], x[7, 9] = float("inf"), float("nan")
    copy, _ = rewritten(trace(module, {"x": x}), PASS)
    copy.graph_module = spelled(copy.graph_module).graph_module
    (ours,), expected = run(copy, feeds_of(module, {"x": x})), module(x)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("make", "rows", "reason"),
    [
        (lambda: island(torch.float32), 512, None),  # float32 is what the weights are
        (lambda: island(wide=torch.float64), 512, None),  # wider than parts make up
        (lambda: island(torch.float16), 512, "stored in float16"),
        (lambda: island(), 255, "255 rows, fewer than 256"),
    ],
)
def test_one_edit_away_nothing_changes(make: Callable[[], Island], rows: int, reason: str | None) -> None:
    copy, result = rewritten(trace(make(), {"x": torch.randn(rows, 64)}), PASS)
    assert not result.modified and not products(copy)
    assert [reason in each.message for each in result.remarks if reason] == ([True] if reason else [])
    assert bool(result.remarks) == (reason is not None)


@pytest.mark.parametrize(
    ("weight", "bias", "reason"),
    [
        ((48, 64), (1,), "bias is not one number"),  # broadcast
        ((48, 64), (512, 48), "bias is not one number"),
        ((64,), None, "weight is a vector"),
        ((0, 64), (0,), ""),  # nothing is computed, and the operator takes it
    ],
)
def test_shapes_that_a_linear_takes_beside_the_usual_ones(
    weight: tuple[int, ...], bias: tuple[int, ...] | None, reason: str
) -> None:
    x, given = torch.randn(512, 64), {"weight": torch.randn(weight).bfloat16()}
    if bias:
        given["bias"] = torch.randn(bias).bfloat16()

    def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return nn.functional.linear(x, weight.float(), None if bias is None else bias.float())

    copy, result = rewritten(trace(project, {"x": x, **given}), PASS)
    (remark,) = result.remarks
    assert result.modified is not bool(reason) and reason in remark.message
    assert torch.equal(run(copy, {"x": x, **given})[0], project(x, **given))


def test_a_weight_that_is_rounded_in_the_call_counts_and_one_that_is_shifted_does_not() -> None:
    class Rounded(nn.Module):
        def __init__(self, shifted: bool) -> None:
            super().__init__()
            self.weight, self.shifted = nn.Parameter(torch.randn(48, 64), requires_grad=False), shifted

        def forward(self, x: Tensor) -> Tensor:
            wide = self.weight.bfloat16().float()
            return nn.functional.linear(x, wide + 1 if self.shifted else wide)

    x = torch.randn(512, 64)
    for shifted in (False, True):
        module = Rounded(shifted)
        copy, _ = rewritten(trace(module, {"x": x}), PASS)
        assert bool(products(copy)) is not shifted
        assert torch.equal(run(copy, feeds_of(module, {"x": x}))[0], module(x))


def test_projections_are_still_known_for_what_they_are() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = island(), island(), island()

        def forward(self, x: Tensor) -> Tensor:
            heads = (each(x).unflatten(-1, (2, 24)).transpose(1, 2) for each in (self.query, self.key, self.value))
            return nn.functional.scaled_dot_product_attention(*heads)

    copy, _ = rewritten(trace(Attention().requires_grad_(False), {"x": torch.randn(1, 300, 64)}), PASS)
    (site,) = copy.fact(AttentionSites).sites
    assert [producer and producer.target for producer in site.producers] == 3 * [MIXED]


def test_rows_may_be_any_number() -> None:
    for ours, plain, exact in at_other_rows(PASS):
        assert torch.equal(ours, plain)
        assert (ours.double() - exact).norm() / exact.norm() < 1e-6


def test_it_runs_in_every_preset_but_the_baselines_and_says_nothing_on_a_cpu(one_thread: None) -> None:
    name = PASS.partition("{")[0]
    assert {key for key, preset in PRESETS.items() if name not in preset.passes} == {"off", "published"}
    module, x = nn.Sequential(island(), nn.SiLU()), torch.randn(512, 64)
    compiled = torch.compile(module, backend="lightint", options={"preset": "exact"})
    assert torch.equal(compiled(x), module(x))
    assert name not in str(lightint_compile.report(compiled))


def test_weights_that_change_between_calls_are_read_again(one_thread: None) -> None:
    module, x = island(), torch.randn(512, 64)
    compiled = torch.compile(module, backend="lightint", options={"passes": f"{PASS},outline-regions"})
    for shift in (0.0, 0.5):
        module.weight.add_(shift)
        assert torch.equal(compiled(x), module(x))
    assert "split-linears [linear]" in str(lightint_compile.report(compiled))
