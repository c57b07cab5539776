from __future__ import annotations

import dataclasses
import operator

import pytest
import torch
from attention_spellings import NEGATIVES, POSITIVES, UNRELATED, Calls, Spelling, dynamic_dims, tensors
from buffered_spellings import FromBuffers, kept_axes
from torch._subclasses.fake_tensor import FakeTensorMode

from lightint_compile import capture
from lightint_compile.passes.canonicalize_attention import CanonicalizeAttention, inductor_guard
from lightint_compile.passes.canonicalize_attention.check import check
from lightint_compile.passes.canonicalize_attention.plan import plan_of
from lightint_compile.passes.canonicalize_attention.site import spelled_site
from lightint_compile.passes.ir.matching import MatchError
from lightint_compile.passes.ir.program import InputKind, Program, ProgramInput
from lightint_compile.passes.ir.remarks import RemarkKind
from lightint_compile.passes.pipeline import Pipeline, PipelineResult
from lightint_compile.testing.capturing import captured as captured_call

aten = torch.ops.aten
SDPA = aten.scaled_dot_product_attention.default
PIPELINE = Pipeline((CanonicalizeAttention(),))


def captured(spelling: Spelling, dtype: torch.dtype = torch.float32, *, dynamic: bool = False) -> Program:
    dims = dynamic_dims(spelling) if dynamic else None
    shapes = {"args": dims} if dims else None
    with torch.no_grad():
        exported = torch.export.export(
            Calls(spelling.run), tuple(tensors(spelling, dtype)), dynamic_shapes=shapes, strict=False
        )
        return capture.from_exported(exported)


def rewritten(program: Program) -> PipelineResult:
    return PIPELINE.run(program, strict=True)


def outputs(result) -> list[torch.Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


def assert_no_worse(spelling: Spelling, program: Program, dtype: torch.dtype) -> None:
    """The rewritten graph is at most twice as far from float64 as eager is."""
    for seed in (1, 2):
        inputs = tensors(spelling, dtype, seed)
        exact = outputs(spelling.run(*(x.double() if x.is_floating_point() else x for x in inputs)))
        eager = outputs(spelling.run(*inputs))
        for want, plain, got in zip(exact, eager, program.graph_module(*inputs), strict=True):
            assert got.dtype == plain.dtype and got.shape == plain.shape
            floor = torch.finfo(dtype).eps * want.abs().max()
            assert (got - want).abs().max() <= 2 * (plain - want).abs().max() + floor


def mask_kind(call: torch.fx.Node) -> str:
    mask = call.args[3] if len(call.args) > 3 else None
    if len(call.args) > 5 and call.args[5]:
        return "causal"
    if mask is None:
        return "none"
    return "bool" if mask.meta["val"].dtype == torch.bool else "float"


def forms_of_spellings() -> list[object]:
    """Every spelling in two forms; in bfloat16 all but every third are slow."""
    return [
        pytest.param(spelling, form, id=f"{spelling.name}-{form}", marks=[pytest.mark.slow] * (last and number % 3 > 0))
        for number, spelling in enumerate(POSITIVES)
        for last, form in enumerate(("float32-static", "bfloat16-dynamic"))
    ]


@pytest.mark.parametrize(("spelling", "form"), forms_of_spellings())
def test_spelling_becomes_one_call(spelling: Spelling, form: str) -> None:
    dynamic = form.endswith("dynamic") and spelling.dynamic  # a causal mask is known by its values: static sizes
    dtype = torch.bfloat16 if form.startswith("bfloat16") else torch.float32
    program = captured(spelling, dtype, dynamic=dynamic)
    result = rewritten(program)
    calls = list(program.calls(SDPA))
    assert len(calls) == 1
    assert not [node for node in program.calls() if "softmax" in str(node.target) or "bmm" in str(node.target)]
    call = calls[0]
    assert call.meta["val"].dim() == 4
    assert mask_kind(call) == spelling.mask
    assert call.kwargs.get("scale") == (None if spelling.scale is None else pytest.approx(spelling.scale))
    assert bool(call.kwargs.get("enable_gqa")) is spelling.grouped
    assert inductor_guard(program) is False
    if spelling.numerics:
        assert [str(r.numerics) for r in result.remarks] == [spelling.numerics]
    assert_no_worse(spelling, program, dtype)
    again = rewritten(program)
    assert not again.modified and not again.remarks


def spellings_of_buffers() -> list[object]:
    """Spellings that read buffers; all but every third are slow."""
    return [
        pytest.param(spelling, id=spelling.name, marks=[pytest.mark.slow] * (number % 3 > 0))
        for number, spelling in enumerate(s for s in POSITIVES if kept_axes(s))
    ]


@pytest.mark.parametrize("spelling", spellings_of_buffers())
def test_spelling_of_a_window_of_a_buffer_becomes_one_call_behind_the_write(spelling: Spelling) -> None:
    module, args = FromBuffers(spelling.run, kept_axes(spelling)), tensors(spelling)
    with torch.no_grad():
        program, _ = captured_call(module, [*args, *module.buffers(args)])
        rewritten(program)
        (call,) = program.calls(SDPA)
        assert mask_kind(call) == spelling.mask
        for seed in (1, 2):
            inputs = tensors(spelling, seed=seed)
            mine, theirs = module.buffers(inputs), module.buffers(inputs)
            torch.testing.assert_close(
                list(program.graph_module(*inputs, *mine)), outputs(module(*inputs, *theirs)), rtol=1e-5, atol=1e-5
            )
            assert all(torch.equal(one, other) and one.any() for one, other in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("spelling", NEGATIVES, ids=lambda s: s.name)
def test_near_miss_is_left_alone_with_a_reason(spelling: Spelling) -> None:
    program = captured(spelling)
    before = str(program.graph)
    result = rewritten(program)
    assert not result.modified and str(program.graph) == before
    remark = next(remark for remark in result.remarks)
    assert remark.kind is RemarkKind.MISSED
    assert (remark.rule, remark.numerics) == (spelling.reason, None)
    assert remark.args["node"] in {node.name for node in program.graph.nodes}


@pytest.mark.parametrize("spelling", UNRELATED, ids=lambda s: s.name)
def test_other_softmaxes_are_not_mentioned(spelling: Spelling) -> None:
    program = captured(spelling)
    result = rewritten(program)
    assert not result.modified and not result.remarks and not inductor_guard(program)


def by_hand(build, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Program:
    """A program whose graph is written node by node, for what a capture never makes."""
    mode, graph = FakeTensorMode(), torch.fx.Graph()
    inputs = []
    for index, shape in enumerate(shapes):
        node = graph.placeholder(f"x{index}")
        node.meta["val"] = mode.from_tensor(torch.empty(shape, dtype=dtype))
        inputs.append(node)

    def call(target, *args, **kwargs):
        node = graph.call_function(target, args, kwargs)
        values, options = torch.utils._pytree.tree_map_only(torch.fx.Node, lambda n: n.meta["val"], (args, kwargs))
        with mode:
            node.meta["val"] = target(*values, **options)
        return node

    graph.output((build(call, *inputs),))
    entries = tuple(ProgramInput(node.name, InputKind.TENSOR, node.name) for node in inputs)
    return Program(torch.fx.GraphModule({}, graph), entries)


def only_call(program: Program) -> torch.fx.Node:
    (call,) = program.calls(SDPA)
    return call


def test_pass_is_found_by_name_and_has_no_options() -> None:
    assert str(Pipeline.parse("canonicalize-attention")) == "canonicalize-attention"


def test_a_write_to_what_attention_reads_forbids_the_rewrite() -> None:
    def build(call, q, k, v):
        weights = call(aten.softmax.int, call(aten.matmul.default, q, call(aten.transpose.int, k, -2, -1)), -1)
        call(aten.mul_.Tensor, call(aten.view.default, v, [2, 4, 12]), 2.0)
        return call(aten.matmul.default, weights, v)

    program = by_hand(build, (2, 4, 3, 4), (2, 4, 3, 4), (2, 4, 3, 4))
    (remark,) = rewritten(program).remarks
    assert remark.rule == "mutation" and not list(program.calls(SDPA))


def test_an_operator_for_one_device_becomes_the_portable_one() -> None:
    def build(call, q, k, v):
        both = call(aten._scaled_dot_product_flash_attention_for_cpu.default, q, k, v, scale=0.25)
        return call(operator.getitem, both, 0)

    program = by_hand(build, *[(2, 4, 3, 4)] * 3)
    inputs = [torch.randn(2, 4, 3, 4) for _ in range(3)]
    before = program.graph_module(*inputs)[0]
    assert rewritten(program).modified and only_call(program).kwargs == {"scale": 0.25}
    torch.testing.assert_close(program.graph_module(*inputs)[0], before)


def test_a_read_log_sum_exp_keeps_the_operator() -> None:
    def build(call, q, k, v):
        both = call(aten._scaled_dot_product_flash_attention_for_cpu.default, q, k, v)
        return call(aten.mul.Tensor, call(operator.getitem, both, 0), call(operator.getitem, both, 1))

    program = by_hand(build, *[(4, 4, 4, 4)] * 3)
    (remark,) = rewritten(program).remarks
    assert remark.rule == "probabilities-escape"


@pytest.fixture(scope="module")
def flash():
    """A flash attention package's operator, as far as a graph can see it."""
    library = torch.library.Library("flash_attn", "FRAGMENT")
    library.define(
        "_flash_attn_forward(Tensor q, Tensor k, Tensor v, float dropout_p, float softmax_scale, bool causal, "
        "int window_size_left, int window_size_right, float softcap, Tensor? alibi_slopes, bool return_softmax) "
        "-> (Tensor, Tensor, Tensor, Tensor)"
    )

    def forward(q, k, v, *_):
        empty = q.new_empty(0)
        return torch.empty_like(q), empty, empty, empty

    library.impl("_flash_attn_forward", forward, "Meta")
    yield torch.ops.flash_attn._flash_attn_forward.default
    library._destroy()


def flash_program(flash, shapes, *, causal=False, window=-1) -> Program:
    def build(call, q, k, v):
        return call(operator.getitem, call(flash, q, k, v, 0.0, 0.5, causal, window, window, 0.0, None, False), 0)

    return by_hand(build, *shapes)


def test_flash_package_operator_becomes_a_call_with_heads_first(flash) -> None:
    program = flash_program(flash, [(2, 6, 4, 8), (2, 6, 2, 8), (2, 6, 2, 8)], causal=True)
    assert rewritten(program).modified
    call = only_call(program)
    assert call.meta["val"].shape == (2, 4, 6, 8) and call.args[5] is True
    assert call.kwargs == {"scale": 0.5, "enable_gqa": True}
    q, k, v = torch.randn(2, 6, 4, 8), torch.randn(2, 6, 2, 8), torch.randn(2, 6, 2, 8)
    keys, values = (x.repeat_interleave(2, 2).transpose(1, 2) for x in (k, v))
    scores = (q.transpose(1, 2) @ keys.mT * 0.5).masked_fill(~torch.ones(6, 6, dtype=torch.bool).tril(), -torch.inf)
    torch.testing.assert_close(program.graph_module(q, k, v)[0], (scores.softmax(-1) @ values).transpose(1, 2))


@pytest.mark.parametrize(
    ("options", "keys", "reason"),
    [({"window": 3}, 6, "window-size-left"), ({"causal": True}, 8, "causal-at-end")],
)
def test_flash_package_operator_with_more_than_attention_stays(flash, options, keys, reason) -> None:
    program = flash_program(flash, [(2, 6, 4, 8), (2, keys, 4, 8), (2, keys, 4, 8)], **options)
    result = rewritten(program)
    assert not result.modified and result.remarks[0].rule == reason


def test_sibling_misses_are_one_remark_with_a_count_a_source_and_a_hint() -> None:
    class Attention(torch.nn.Module):
        def forward(self, x):
            weights = torch.softmax(torch.tanh(x @ x.mT), dim=-1)
            return weights @ x

    blocks = torch.nn.Sequential(*(Attention() for _ in range(3)))
    program = capture.from_exported(torch.export.export(blocks, (torch.randn(2, 4, 8),), strict=False))
    (remark,) = rewritten(program).remarks
    assert (remark.rule, remark.count) == ("softcap", 3)
    assert "tanh" in remark.message and "soft cap" in remark.hint
    assert "test_canonicalize_attention.py" in remark.source


def test_what_is_applied_says_so_with_sizes_and_operations() -> None:
    (remark,) = rewritten(captured(next(s for s in POSITIVES if s.name == "grouped-interleaved"))).remarks
    assert remark.kind is RemarkKind.APPLIED and remark.rule == "matmul-softmax-matmul"
    assert remark.flops_before == remark.flops_after == 2 * 2 * 4 * 6 * 8 * (4 + 4)
    expected = {"batch": 2, "heads": 4, "key_heads": 2, "query_tokens": 6, "key_tokens": 8, "head_dim": 4}
    assert {name: remark.args[name] for name in expected} == expected


def test_new_nodes_say_where_they_come_from() -> None:
    program = captured(POSITIVES[0])
    rewritten(program)
    meta = only_call(program).meta
    assert meta["lightint"]["pass"] == "canonicalize-attention" and "attention_spellings.py" in meta["stack_trace"]


@pytest.mark.parametrize("change", [{"scale": 0.25}, {"causal": True}, {"key_is_left": True}], ids=str)
def test_a_wrong_reading_is_stopped_by_the_numbers(change) -> None:
    program = captured(next(s for s in POSITIVES if s.name == "scale-after"))
    site = next(site for node in program.graph.nodes if (site := _site(node)) is not None)
    plan = plan_of(site)
    check(site, plan)
    with pytest.raises(MatchError) as caught:
        check(dataclasses.replace(site, **change), plan)
    assert caught.value.failure.code == "numerics"


def _site(node: torch.fx.Node):
    return spelled_site(node) if node.op == "call_function" and node.target is aten.softmax.int else None


def test_rows_with_every_key_masked() -> None:
    """Zero instead of NaN after -inf, which the remark says; the mean of the values after the lowest number."""
    by_name = {spelling.name: spelling for spelling in POSITIVES}
    for name in ("masked-fill", "masked-fill-lowest", "nan-to-zero"):
        program = captured(by_name[name])
        inputs = tensors(by_name[name])
        inputs[3][..., 1, :] = False
        before = program.graph_module(*inputs)[0]
        (remark,) = rewritten(program).remarks
        after = program.graph_module(*inputs)[0]
        assert not after.isnan().any()
        assert ("0 instead of NaN" in remark.message) is bool(before.isnan().any()) is (name == "masked-fill")
        torch.testing.assert_close(after, before.nan_to_num(0.0))


def test_inductor_guard_is_up_while_a_raw_chain_remains() -> None:
    by_name = {spelling.name: spelling for spelling in [*POSITIVES, *NEGATIVES]}
    assert inductor_guard(captured(by_name["key-permuted"])) is True
    program = captured(by_name["tensor-scale"])
    rewritten(program)
    assert inductor_guard(program) is True


@pytest.mark.slow
def test_inductor_is_right_on_what_it_gets_wrong_by_itself() -> None:
    """Equal sizes let stock Inductor 2.13 read ``permute(0, 2, 3, 1)`` as a transpose; after the pass it cannot."""

    def run(q, k, v):
        return torch.softmax(q @ k.permute(0, 2, 3, 1) * 0.5, dim=-1) @ v

    inputs = [torch.randn(4, 4, 4, 4) for _ in range(3)]
    expected = run(*inputs)
    program = capture.from_exported(torch.export.export(Calls(run), tuple(inputs), strict=False))
    assert rewritten(program).modified
    with torch.no_grad():
        compiled = torch.compile(program.graph_module, backend="inductor")
        torch.testing.assert_close(compiled(*inputs)[0], expected)
