"""sink-row-repeats: every spelling, against the graph it came from; what it must not touch; real world models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import worldplay_tiny
import zoo
from differential import feeds_of, largest_difference, rewritten, run, trace, trace_function
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lightint_compile.passes.analysis.axes import factors as algebra
from lightint_compile.passes.analysis.axes.factors import Kind
from lightint_compile.passes.analysis.row_repeats import layout as rows
from lightint_compile.passes.ir.flops import program_flops
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.passes.ir.sizes import product

FRAMES, PER_FRAME, WIDTH = 3, 5, 8
PASS = "sink-row-repeats"


def fixed(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


REPEATS: dict[str, Callable[[Tensor], Tensor]] = {
    "repeat_interleave": lambda x: x.repeat_interleave(PER_FRAME, dim=1),
    "expand_reshape": lambda x: x.unsqueeze(2).expand(-1, -1, PER_FRAME, -1).reshape(2, -1, WIDTH),
    "repeat": lambda x: x.repeat(1, PER_FRAME, 1),
    "unsqueeze_repeat": lambda x: x.unsqueeze(2).repeat(1, 1, PER_FRAME, 1).flatten(1, 2),
    "batch_expand": lambda x: x[:1].expand(6, -1, -1),
    "batch_and_token": lambda x: x[:1].repeat(4, 1, 1).repeat_interleave(PER_FRAME, 1),
    "nested": lambda x: x.repeat_interleave(2, 1).repeat_interleave(3, 1),
    "grid": lambda x: x[:, :, None, None].expand(-1, -1, 2, 4, -1).flatten(1, 3),
    "leading": lambda x: x[0].repeat(7, 2, 1),
}

ROWWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "norms": lambda x, w: F.layer_norm(F.rms_norm(x, (WIDTH,)), (WIDTH,)) @ w.T,
    "modulation": lambda x, w: torch.stack([F.linear(F.silu(x), w).chunk(4, -1)[k].exp() for k in range(4)], -2),
    "einsum": lambda x, w: torch.einsum("btc,oc->bto", x, w),
    "reductions": lambda x, w: (x.softmax(-1) * x.sum(-1, keepdim=True)) @ w.T,
    "joins": lambda x, w: F.linear(torch.cat([x.sin(), torch.ones_like(x)], -1)[..., 4:12], w),
    "views": lambda x, w: F.linear(x.unflatten(-1, (2, 4)).transpose(1, 2)[:, 1].unsqueeze(1), w[:, :4]),
    "casts": lambda x, w: F.linear(x.float(), w.float()).double(),
    "matrices": lambda x, w: torch.linalg.inv(torch.diag_embed(x.cosh())) @ torch.diag_embed(x) @ w.T,
    "added to a product": lambda x, w: torch.baddbmm(w[:, :1].T[None], x, w.T[None].expand(2, -1, -1)),
    "without safety": lambda x, w: F.linear(torch.ops.aten._unsafe_view(x, [2, FRAMES * PER_FRAME, 1, WIDTH]), w),
    "written into zeros": lambda x, w: F.linear(torch.ops.aten.copy(torch.zeros(x.shape, dtype=x.dtype), x), w),
    "attention": lambda x, w: F.scaled_dot_product_attention(F.linear(x, w[:8]), w[None], w[None]),
}


def check(call: Any, arguments: dict[str, Any], tolerance: float = 1e-13) -> tuple[Program, list[Remark]]:
    """The rewritten program and its remarks; the program computes what it did, and a second run changes nothing."""
    program = trace_function(call, arguments)
    copy, result = rewritten(program, PASS)
    feeds = feeds_of(call, arguments)
    assert largest_difference(run(copy, feeds), run(program, feeds)) <= tolerance
    assert not rewritten(copy, PASS)[1].modified
    return copy, list(result.remarks)


def applied(remarks: list[Remark], rule: str = "") -> list[Remark]:
    return [r for r in remarks if r.kind is RemarkKind.APPLIED and rule in r.rule]


@pytest.mark.parametrize("name", REPEATS)
def test_every_spelling_of_a_repetition(name: str) -> None:
    def call(x: Tensor, w: Tensor) -> Tensor:
        return F.linear(F.silu(REPEATS[name](x)), w) + 1

    program, remarks = check(call, {"x": fixed(2, FRAMES, WIDTH), "w": fixed(16, WIDTH)})
    (linear,) = program.calls(torch.ops.aten.linear.default)
    differing = FRAMES if name in ("batch_expand", "batch_and_token", "leading") else 2 * FRAMES
    tensor = tensor_of(linear)
    assert tensor is not None and tensor.numel() == differing * 16
    (remark,) = applied(remarks, "linear")
    assert remark.flops_after == 2 * differing * 16 * WIDTH
    assert remark.flops_before is not None and remark.flops_before > 4 * remark.flops_after / 2


@pytest.mark.parametrize("name", ROWWISE)
def test_rowwise_operations_run_on_the_rows_that_differ(name: str) -> None:
    def call(x: Tensor, w: Tensor) -> Tensor:
        return ROWWISE[name](x.repeat_interleave(PER_FRAME, dim=1), w)

    arguments = {"x": fixed(2, FRAMES, WIDTH), "w": fixed(16, WIDTH)}
    program, remarks = check(call, arguments, tolerance=1e-6 if name == "casts" else 1e-13)
    assert applied(remarks)
    before = program_flops(trace_function(call, arguments))["total"]
    assert program_flops(program)["total"] * PER_FRAME == before


def test_the_repetition_stays_where_rows_start_to_differ() -> None:
    def call(tokens: Tensor, vector: Tensor, weight: Tensor) -> Tensor:
        parts = F.linear(F.silu(vector.repeat_interleave(PER_FRAME, 1)), weight).chunk(2, -1)
        return F.layer_norm(tokens, (WIDTH,)) * (1 + parts[0]) + parts[1]

    arguments = {
        "tokens": fixed(2, FRAMES * PER_FRAME, WIDTH),
        "vector": fixed(2, FRAMES, WIDTH),
        "weight": fixed(16, WIDTH),
    }
    program, remarks = check(call, arguments)
    repeats = list(program.calls(torch.ops.aten.repeat_interleave.self_int))
    assert len(repeats) == 2
    readers = {user.target for node in repeats for user in node.users}
    assert readers == {torch.ops.aten.mul.Tensor, torch.ops.aten.add.Tensor}
    (remark,) = applied(remarks)
    assert (remark.args["rows_before"], remark.args["rows_after"]) == ("15", "3")
    assert not [r for r in remarks if r.kind is RemarkKind.MISSED]


@pytest.mark.parametrize("bias", [(16 * PER_FRAME,), (1, 16 * PER_FRAME), (FRAMES, 1)])
def test_repeated_columns_of_a_product_meet_what_is_added(bias: tuple[int, ...]) -> None:
    def call(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return torch.addmm(b, x, w.repeat_interleave(PER_FRAME, 1))

    program, _ = check(call, {"x": fixed(FRAMES, WIDTH), "w": fixed(WIDTH, 16), "b": fixed(*bias)})
    (product,) = program.calls(torch.ops.aten.addmm.default)
    assert product.meta["val"].shape[1] == (16 if bias[-1] == 1 else 16 * PER_FRAME)


def test_nothing_repeated_is_nothing() -> None:
    def call(x: Tensor) -> Tensor:
        nothing = x[:, :0].repeat(1, 2, 1) + x[:, :0].repeat_interleave(2, 1)
        return torch.cat([nothing.sin(), x], 1)

    check(call, {"x": fixed(2, FRAMES, WIDTH)})


def test_views_cut_across_axes_that_differ() -> None:
    """Three and four rows that differ may be seen as two and six in front of a repetition."""
    layout = (algebra.plain(3), algebra.plain(4), algebra.same(5))
    assert rows.regroup(layout, (2, 6, 5)) == (layout, (algebra.plain(2), algebra.plain(6), algebra.same(5)))
    merged = (algebra.plain(3), algebra.axis([algebra.Factor(Kind.PLAIN, 4), algebra.Factor(Kind.SAME, 5)]))
    assert rows.regroup(merged, (2, 30)) == (
        merged,
        (algebra.plain(2), algebra.axis([*algebra.plain(6), *algebra.same(5)])),
    )


def test_an_output_gets_memory_of_its_own() -> None:
    program, _ = check(lambda x: x.expand(4, -1).exp(), {"x": fixed(1, WIDTH)})
    assert run(program, {"x": fixed(1, WIDTH)})[0].is_contiguous()


def test_a_view_that_the_new_layout_forbids_copies() -> None:
    """The sum takes the layout of its first operand, which was contiguous and is now an expanded row."""
    program, _ = check(lambda x, y: (x.expand(4, -1).exp() + y.t()).view(-1), {"x": fixed(1, 8), "y": fixed(8, 4)})
    assert list(program.calls(torch.ops.aten.reshape.default))


def test_an_index_that_repeats() -> None:
    def call(x: Tensor) -> Tensor:
        return x.index_select(1, torch.arange(FRAMES).repeat_interleave(PER_FRAME)).exp()

    program = trace(call, {"x": fixed(2, FRAMES, WIDTH)})
    copy, result = rewritten(program, PASS)
    (exp,) = copy.calls(torch.ops.aten.exp.default)
    assert result.modified and exp.meta["val"].shape[1] == FRAMES
    assert torch.equal(run(copy, {"x": fixed(2, FRAMES, WIDTH)})[0], run(program, {"x": fixed(2, FRAMES, WIDTH)})[0])


NEGATIVE: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "norm": (lambda x, w: F.layer_norm(x.repeat_interleave(5, -1), (40,)), "statistics run over the repeated axis"),
    "features": (lambda x, w: F.linear(x.repeat_interleave(2, -1), w.repeat(1, 2)), "its feature axis"),
    "softmax": (lambda x, w: x.repeat_interleave(5, 1).softmax(1) @ w.T, "runs along the repeated axis 1"),
    "joined": (lambda x, w: F.linear(torch.cat([x.repeat_interleave(5, 1), x], 1), w), "joined with other rows"),
    "random": (lambda x, w: F.linear(F.dropout(x.repeat_interleave(5, 1), 0.5, True), w), "draws random numbers anew"),
    "unknown": (lambda x, w: F.linear(x.repeat_interleave(5, 1).cumprod(1), w), "no rule for aten.cumprod"),
}


@pytest.mark.parametrize("name", NEGATIVE)
def test_what_it_leaves_and_why(name: str) -> None:
    call, reason = NEGATIVE[name]
    program = trace_function(call, {"x": fixed(2, FRAMES, WIDTH), "w": fixed(16, WIDTH)})
    copy, result = rewritten(program, PASS)
    missed = [r for r in result.remarks if r.kind is RemarkKind.MISSED]
    if name == "norm":  # nothing but the norm itself is lost, and a norm is no product
        assert not result.modified and not missed
        return
    assert any(reason in r.message and r.hint and r.flops_before for r in missed), result.remarks
    assert program_flops(copy)["total"] == program_flops(program)["total"]


def test_truly_different_rows_are_no_miss() -> None:
    def call(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return F.linear(x.repeat_interleave(5, 1) * y, w)

    program = trace_function(call, {"x": fixed(2, 3, 8), "y": fixed(2, 15, 8), "w": fixed(16, 8)})
    assert rewritten(program, PASS)[1].remarks == ()


def test_symbolic_number_of_frames() -> None:
    class Call(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, 6 * WIDTH, dtype=torch.float64)

        def forward(self, tokens: Tensor, vector: Tensor) -> Tensor:
            shift, scale, *_ = self.linear(vector.repeat_interleave(PER_FRAME, 1)).chunk(6, -1)
            heads = (tokens * (1 + scale) + shift).unflatten(-1, (2, 4)).transpose(1, 2)
            return heads * vector.sin().unsqueeze(2).repeat(1, 1, PER_FRAME, 1).flatten(1, 2)[:, None, :, :4].exp()

    module = Call()

    def inputs(count: int) -> dict[str, Tensor]:
        return {"tokens": fixed(1, count * PER_FRAME, WIDTH), "vector": fixed(1, count, WIDTH)}

    program = trace(module, inputs(4), dynamic={"tokens": 1, "vector": 1})
    copy, result = rewritten(program, PASS)
    assert result.modified
    for count in (2, 4, 9):
        feeds = feeds_of(module, inputs(count)) | {"vector.size().1": count}
        symbols = {e.path: count * (PER_FRAME if "tokens" in e.path else 1) for e in program.inputs if "size" in e.path}
        assert largest_difference(run(copy, feeds | symbols), run(program, feeds | symbols)) <= 1e-13


@pytest.mark.parametrize("repeat", [lambda x: x.repeat(1, 2, 1), lambda x: x.repeat_interleave(x.shape[1], 1)])
def test_a_repeated_size_that_is_computed_further_down_is_made_where_it_is_asked_for(repeat: Any) -> None:
    class Call(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)

        def forward(self, vector: Tensor) -> Tensor:
            tokens = repeat(vector)
            rows = self.linear(tokens.sin())
            return rows.view(1, rows.shape[1], 2, 4).transpose(1, 2) @ rows.new_ones(4, rows.shape[1])

    module = Call()
    program = trace(module, {"vector": fixed(1, 4, WIDTH)}, dynamic={"vector": 1})
    copy, result = rewritten(program, PASS)
    assert result.modified
    for count in (2, 4, 9):
        feeds = feeds_of(module, {"vector": fixed(1, count, WIDTH)})
        feeds |= {e.path: count for e in program.inputs if "size" in e.path}
        assert largest_difference(run(copy, feeds), run(program, feeds)) <= 1e-13


def test_bfloat16_rows_are_equal_bit_for_bit() -> None:
    def call(x: Tensor, w: Tensor) -> Tensor:
        return F.linear(F.silu(x.repeat_interleave(PER_FRAME, 1)), w).float().sin().to(torch.bfloat16)

    arguments = {"x": fixed(1, FRAMES, WIDTH).bfloat16(), "w": fixed(16, WIDTH).bfloat16()}
    check(call, arguments, tolerance=0.0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_view_rule_against_numbers(data: st.DataObject) -> None:
    """Regroup a repeated tensor to random sizes: the small tensor, viewed and repeated, is the large one viewed."""
    segments = st.builds(algebra.Factor, st.sampled_from([Kind.PLAIN, Kind.SAME]), st.integers(1, 3))
    axes = data.draw(st.lists(st.lists(segments, min_size=1, max_size=2).map(algebra.axis), min_size=1, max_size=3))
    factors = [f for axis in axes for segment in axis for f in _primes(int(segment.size))]
    shape = []
    while factors:
        count = data.draw(st.integers(1, len(factors)))
        shape.append(int(product(factors[:count])))
        factors = factors[count:]
    needed, result = rows.regroup(tuple(axes), shape)
    assert [algebra.extent(axis) for axis in result] == shape
    assert [algebra.extent(axis) for axis in needed] == [algebra.extent(axis) for axis in axes]
    large, small = _example(needed)
    assert torch.equal(
        _written_out(small.reshape([int(rows.kept_size(a)) for a in result]), result), large.reshape(shape)
    )


def _primes(number: int) -> list[int]:
    return [] if number == 1 else [(factor := 2 if number % 2 == 0 else 3), *_primes(number // factor)]


def _example(layout: algebra.Layout) -> tuple[Tensor, Tensor]:
    sizes = [int(rows.kept_size(axis)) for axis in layout]
    small = torch.arange(int(product(sizes))).reshape(sizes)
    return _written_out(small, layout), small


def _written_out(small: Tensor, layout: algebra.Layout) -> Tensor:
    inner = [s for axis in layout for s in axis]
    shape = [1 if s.repeated else int(s.size) for s in inner]
    return small.reshape(shape).expand([int(s.size) for s in inner]).reshape([int(algebra.extent(a)) for a in layout])


def test_worldplay_runs_its_conditioning_once_a_frame() -> None:
    config, program = worldplay_tiny.CONFIG, worldplay_tiny.program()
    copy, result = rewritten(program, PASS)
    assert {"linear", "matmul"} <= {r.rule for r in applied(list(result.remarks))}
    modulations = [n for n in copy.calls(torch.ops.aten.linear.default) if "img_mod" in str(n.args[1])]
    assert len(modulations) == config.depth * (config.steps + 1)
    for node in modulations[config.depth :]:
        assert node.meta["val"].shape[1] == config.chunk_frames
    assert not [r for r in result.remarks if r.kind is RemarkKind.MISSED]
    for history in (8, 24):
        feeds = feeds_of(worldplay_tiny.module(), worldplay_tiny.inputs(history))
        assert largest_difference(run(copy, feeds), run(program, feeds)) <= 1e-12


@pytest.mark.parametrize(("name", "rule"), [("cosmos_v2w", "linear"), ("skyreels_v2_df", "pointwise")])
def test_diffusers_models_with_a_timestep_a_frame(name: str, rule: str) -> None:
    module, arguments = zoo.build(name)
    program = zoo.program(name)
    copy, result = rewritten(program, PASS)
    assert applied(list(result.remarks), rule)
    feeds = feeds_of(module, arguments)
    assert largest_difference(run(copy, feeds), run(program, feeds)) <= 1e-5


def test_a_timestep_given_per_token_is_reported_not_guessed() -> None:
    result = rewritten(zoo.program("wan22_ti2v"), PASS)[1]
    (remark,) = [r for r in result.remarks if r.rule == "per-token-input"]
    assert remark.kind is RemarkKind.ANALYSIS and remark.args == {"input": "timestep", "rows": 256}
    assert "a frame" in remark.hint and remark.flops_before
    assert not [
        r
        for r in rewritten(zoo.program("wan22_ti2v"), f"{PASS}{{report-inputs=false}}")[1].remarks
        if "token" in r.rule
    ]


@pytest.mark.parametrize(("frames", "rows"), [(20, 20), (4, 80)])
def test_products_of_8_bit_keep_as_many_rows_as_they_need_on_every_device(frames: int, rows: int) -> None:
    def call(x: Tensor) -> Tensor:
        weight = torch.linspace(-90, 90, 24 * 16).reshape(16, 24).to(torch.int8)
        return torch._int_mm(x.repeat_interleave(80 // frames, 0).round().to(torch.int8), weight)

    inputs = {"x": torch.randn(frames, 16) * 30}
    program = trace(call, inputs)
    copy, _ = rewritten(program, "sink-row-repeats")
    assert [node.meta["val"].shape[0] for node in copy.calls(torch.ops.aten._int_mm.default)] == [rows]
    assert all(map(torch.equal, run(copy, inputs), run(program, inputs)))
