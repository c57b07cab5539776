"""distinct-rows: timesteps of every token, given as an input, whose rows are found in every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import zoo
from differential import rewritten, trace
from export_here import run_here
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import lightint_compile
from lightint_compile.exporting import export, load
from lightint_compile.passes.ir.decision_points import RowsPoint, point_from, point_of
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.runtime.content_check import Watch
from lightint_compile.runtime.distinct_rows import distinct_rows

PASSES, TOKENS, WIDTH = "distinct-rows,sink-row-repeats", 64, 16
aten = torch.ops.aten


def angles(timestep: Tensor) -> Tensor:
    found = timestep[..., None] * torch.arange(1, 5, dtype=timestep.dtype)
    return torch.cat([found.cos(), found.sin()], -1)


class Modulated(nn.Module):
    """Blocks whose scale and shift are embedded from a time for every token."""

    def __init__(self, dtype: torch.dtype = torch.float64, between: Callable[[Tensor], Tensor] = F.silu) -> None:
        super().__init__()
        self.embed = nn.ModuleList([nn.Linear(8, 32), nn.Linear(32, 6 * WIDTH)]).to(dtype)
        self.tables = nn.ParameterList([torch.randn(1, 6, WIDTH).to(dtype) for _ in range(2)])
        self.between = between

    def forward(self, timestep: Tensor, tokens: Tensor) -> Tensor:
        first, second = self.embed
        embedded = angles(timestep.flatten()).to(tokens.dtype).unflatten(0, timestep.shape)
        rows = second(self.between(first(embedded))).unflatten(-1, (6, WIDTH))
        for table in self.tables:
            shift, scale, *_ = (table + rows).chunk(6, -2)
            tokens = F.layer_norm(tokens, (WIDTH,)) * (1 + scale.squeeze(-2)) + shift.squeeze(-2)
        return tokens


def tokens(batch: int = 2, count: int = TOKENS, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, count, WIDTH, generator=torch.Generator().manual_seed(count), dtype=dtype)


def clean_first_frame(batch: int, count: int) -> Tensor:
    times = torch.full((batch, count), 700.0, dtype=torch.float64)
    times[:, : count // 4] = 0
    return times


def one_time(batch: int, count: int) -> Tensor:
    return torch.full((batch, count), 300.0, dtype=torch.float64)


def of_frames(batch: int, count: int) -> Tensor:
    return (1 + torch.arange(count // 8 * batch, dtype=torch.float64).view(batch, -1)).repeat_interleave(8, 1)


def one_element_differs(batch: int, count: int) -> Tensor:
    times = clean_first_frame(batch, count)
    times[-1, 3 * count // 4 :] = 5
    return times


def alternating(batch: int, count: int) -> Tensor:
    return torch.arange(batch * count, dtype=torch.float64).view(batch, count) % 2


def all_differ(batch: int, count: int) -> Tensor:
    return torch.arange(batch * count, dtype=torch.float64).view(batch, count)


def not_numbers(batch: int, count: int) -> Tensor:
    times = clean_first_frame(batch, count)
    times[:, 5:7] = torch.tensor([0.0, -0.0], dtype=torch.float64)
    return times


TIMES = [clean_first_frame, one_time, of_frames, one_element_differs, alternating, all_differ, not_numbers]


def compiled(module: nn.Module, **options: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(module, backend="lightint", options={"delegate": "eager", "strict": True, **options})


def applied(program: Program, passes: str = PASSES) -> tuple[Program, list[Remark]]:
    copy, result = rewritten(program, passes)
    return copy, [r for r in result.remarks if r.pass_name == "distinct-rows"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_any_number_of_rows_one_program(dtype: torch.dtype) -> None:
    module = Modulated(dtype)
    function = compiled(module)
    tolerance = 1e-14 if dtype is torch.float64 else 2**-7
    with torch.no_grad():
        for times in (*TIMES, *TIMES):
            given = {"timestep": times(2, TOKENS), "tokens": tokens(dtype=dtype)}
            expected = module(**given)
            difference = (function(**given) - expected).float().norm() / expected.float().norm()
            assert difference <= tolerance, times.__name__
    (section,) = lightint_compile.report(function).sections
    assert {r.pass_name for r in section.remarks if r.kind is RemarkKind.APPLIED} >= {
        "distinct-rows",
        "sink-row-repeats",
    }


def test_the_embedding_runs_on_the_rows_that_differ() -> None:
    program = trace(Modulated(), {"timestep": clean_first_frame(2, TOKENS), "tokens": tokens()})
    copy, (remark,) = applied(program)
    assert remark.kind is RemarkKind.APPLIED and remark.args == {"input": "timestep", "rows": 64, "counted_with": 2}
    sizes = [node.meta["val"].shape[1] for node in copy.calls(aten.linear.default)]
    assert len(sizes) == 2 and all(isinstance(size, torch.SymInt) and size.node.hint == 2 for size in sizes)
    assert not rewritten(copy, PASSES)[1].modified


@pytest.mark.parametrize("times", TIMES)
def test_rows_are_those_that_differ_bit_for_bit(times: Callable[[int, int], Tensor]) -> None:
    forms = (
        (times(2, TOKENS), 1),
        (times(2, TOKENS).t(), 0),
        (times(1, TOKENS)[0], 0),
        (times(1, 64).expand(3, -1), 1),
    )
    for rows, axis in forms:
        first, number = distinct_rows(RowsPoint((axis,)), Watch(), rows)
        again = rows.index_select(axis, first).index_select(axis, number)
        assert torch.equal(again.contiguous().view(torch.int64), rows.contiguous().view(torch.int64))
        columns = rows.movedim(axis, 0).reshape(TOKENS, -1)
        runs = 1 + int((columns[1:] != columns[:-1]).any(1).sum())
        assert len(first) == max(runs, 2) or times is not_numbers


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.sampled_from([torch.bfloat16, torch.bool, torch.int64]))
def test_numbers_of_runs(values: list[int], dtype: torch.dtype) -> None:
    rows = torch.tensor(values).to(dtype)
    first, number = distinct_rows(RowsPoint((0,)), Watch(), rows)
    assert torch.equal(rows[first][number], rows) and len(first) >= 2
    assert int(number[-1]) == sum(a != b for a, b in zip(rows.tolist(), rows.tolist()[1:], strict=False))


def test_any_number_of_tokens_and_elements() -> None:
    module = Modulated()
    function = compiled(module)
    with torch.no_grad():
        for batch, count in ((2, 64), (2, 96), (3, 128), (1, 160)):
            for times in (clean_first_frame, all_differ):
                given = {"timestep": times(batch, count), "tokens": tokens(batch, count)}
                assert torch.allclose(function(**given), module(**given), rtol=1e-13, atol=1e-13)


def test_several_inputs_are_told_by_one_read() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = Modulated(), Modulated()

        def forward(self, timestep: Tensor, density: Tensor, tokens: Tensor) -> Tensor:
            return self.one(timestep, tokens) + self.two(density, tokens)

    module = Two()
    given = {"timestep": clean_first_frame(2, TOKENS), "density": of_frames(2, TOKENS), "tokens": tokens()}
    copy, remarks = applied(trace(module, given))
    asked = [spec for node in copy.graph.nodes if (spec := point_of(copy.graph_module, node)) is not None]
    assert asked == [RowsPoint((1, 1))] and len(remarks) == 2
    with torch.no_grad():
        assert torch.allclose(compiled(module)(**given), module(**given), rtol=1e-13, atol=1e-13)


def test_a_text_kept_between_calls_is_kept_still() -> None:
    """Its checksums and the number of rows come by one read."""
    module, given = zoo.build("wan22_ti2v")
    function = compiled(module)
    with torch.no_grad():
        for _ in range(2):
            assert torch.allclose(function(**given)[0], module(**given)[0], rtol=1e-4, atol=1e-5)
    (section,) = lightint_compile.report(function).sections
    assert any(r.rule == "memo" for r in section.remarks)


@pytest.mark.slow
def test_a_transformer_of_diffusers() -> None:
    module, given = zoo.build("wan22_ti2v")
    function = compiled(module, preset="exact", delegate="inductor")
    count = given["timestep"].shape[1]
    with torch.no_grad():
        for times in (clean_first_frame, all_differ, one_time, of_frames):
            call = given | {"timestep": times(1, count).to(given["timestep"].dtype)}
            expected = module(**call)[0]
            assert (function(**call)[0] - expected).norm() <= 1e-5 * expected.norm()
    (section,) = lightint_compile.report(function).sections
    assert section.measurements["distinct regions"] == 4


def mixes_tokens(rows: Tensor) -> Tensor:
    return F.silu(rows).cumsum(-2)


def no_rule(rows: Tensor) -> Tensor:
    return F.silu(rows).cumprod(-2)


def test_what_ends_the_rows_too_early_is_named() -> None:
    class Early(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 512 * WIDTH, dtype=torch.float64)

        def forward(self, timestep: Tensor, tokens: Tensor) -> Tensor:
            return tokens * self.linear(angles(timestep).cumsum(1))[..., :WIDTH]

    given = {"timestep": clean_first_frame(2, TOKENS), "tokens": tokens()}
    copy, (remark,) = applied(trace(Early(), given))
    assert remark.kind is RemarkKind.MISSED and "runs along" in remark.message and remark.hint and remark.flops_before
    assert not [node for node in copy.graph.nodes if node.op == "call_module"]


@pytest.mark.parametrize("between", [mixes_tokens, no_rule])
def test_only_what_comes_before_rows_meet_is_computed_on_few(between: Callable[[Tensor], Tensor]) -> None:
    module = Modulated(between=between)
    given = {"timestep": clean_first_frame(2, TOKENS), "tokens": tokens()}
    with torch.no_grad():
        assert torch.allclose(compiled(module)(**given), module(**given), rtol=1e-12, atol=1e-12)


class Positions(nn.Module):
    """Numbers of tokens, as rotary positions are given: sines, and no product behind them."""

    def forward(self, timestep: Tensor, tokens: Tensor) -> Tensor:
        found = angles(timestep)
        return F.linear(tokens[..., :8] * found, tokens[0, :, :8])


class PerFrame(nn.Module):
    """A timestep for each of a few frames."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, WIDTH, dtype=torch.float64)

    def forward(self, timestep: Tensor, tokens: Tensor) -> Tensor:
        return tokens.unflatten(1, (4, -1)) * self.linear(angles(timestep[:, :4]))[:, :, None]


@pytest.mark.parametrize(("module", "times"), [(Positions(), all_differ(2, TOKENS)), (PerFrame(), of_frames(2, 32))])
def test_nothing_is_asked_for_nothing(module: nn.Module, times: Tensor) -> None:
    given = {"timestep": times[:, :4] if isinstance(module, PerFrame) else times, "tokens": tokens()}
    copy, remarks = applied(trace(module, given))
    assert not remarks and not [node for node in copy.graph.nodes if node.op == "call_module"]


def test_an_input_that_the_call_writes_to_is_not_asked_for() -> None:
    class Writes(Modulated):
        def forward(self, timestep: Tensor, tokens: Tensor) -> Tensor:
            timestep[:, :8] = 0
            return super().forward(timestep, tokens)

    module = Writes()
    function = compiled(module)
    with torch.no_grad():
        for _ in range(2):
            one, other = of_frames(2, TOKENS), of_frames(2, TOKENS)
            assert torch.allclose(function(one, tokens()), module(other, tokens()), rtol=1e-13, atol=1e-13)
            assert torch.equal(one, other)


def test_an_archive_computes_every_row(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightint_compile.exporting.writing.run_fresh", run_here)  # a process of its own shows no more
    module = Modulated()
    given = (clean_first_frame(2, TOKENS), tokens())
    done = export(module, given, tmp_path / "modulated.pt2")
    (remark,) = [r for r in done.report.sections[0].remarks if r.rule == "per-token-input"]
    assert remark.kind is RemarkKind.ANALYSIS and remark.pass_name == "sink-row-repeats"
    with torch.no_grad():
        assert torch.allclose(load(tmp_path / "modulated.pt2")(*given), module(*given))


def test_without_regions_the_driver_is_asked_all_the_same() -> None:
    module = Modulated()
    function = compiled(module, passes=PASSES)
    with torch.no_grad():
        for times in (clean_first_frame, all_differ):
            given = (times(2, TOKENS), tokens())
            assert torch.allclose(function(*given), module(*given), rtol=1e-13, atol=1e-13)


def test_a_point_is_plain_data() -> None:
    assert point_from(RowsPoint((1, 0)).to_dict()) == RowsPoint((1, 0))
