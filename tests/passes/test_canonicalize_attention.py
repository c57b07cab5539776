from __future__ import annotations

import pytest
import torch
from attention_spellings import NEGATIVES, POSITIVES, UNRELATED, Calls, Spelling, dynamic_dims, tensors
from lightint_compile.passes.canonicalize_attention import CanonicalizeAttention, inductor_guard
from lightint_compile.passes.pipeline import Pipeline, PipelineResult
from lightint_compile.passes.program import Program
from lightint_compile.passes.remarks import RemarkKind

from lightint_compile import capture

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


def values(program: Program, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    flat = [x for x in inputs]
    return list(program.graph_module(*flat))


def outputs(result) -> list[torch.Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


def assert_no_worse(spelling: Spelling, program: Program, dtype: torch.dtype) -> None:
    """The rewritten graph is at most twice as far from float64 as eager is."""
    for seed in (1, 2):
        inputs = tensors(spelling, dtype, seed)
        exact = outputs(spelling.run(*(x.double() if x.is_floating_point() else x for x in inputs)))
        eager = outputs(spelling.run(*inputs))
        for want, plain, got in zip(exact, eager, values(program, inputs), strict=True):
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


@pytest.mark.parametrize("form", ["float32-static", "bfloat16-dynamic"])
@pytest.mark.parametrize("spelling", POSITIVES, ids=lambda s: s.name)
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
