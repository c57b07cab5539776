"""Dense or sparse is decided once, the report says that decision, and what runs is what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from differential import rewritten, run, trace, trace_function
from torch import Tensor, nn

import lightint_compile
from lightint_compile.kernels import cost, dispatch, planning
from lightint_compile.passes.ir.remarks import Remark, RemarkKind

ENOUGH = 10**9


@pytest.fixture(autouse=True)
def fresh():
    planning.forget()
    yield
    planning.forget()


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which branch every call of the operators took, in order."""
    log: list[str] = []

    def logged(name: str, make: Any) -> Any:
        def planned(*args: Any) -> Any:
            plan = make(*args)
            return lambda *call: (log.append(name), plan(*call))[1]

        return planned

    for name in ("dense", "sparse"):
        monkeypatch.setattr(planning, f"_{name}", logged(name, getattr(planning, f"_{name}")))
    return log


def heads(video: Tensor) -> Tensor:
    """``[1, 16, T, H, W]`` to two heads ``[1, 2, tokens, 8]``."""
    return F.avg_pool3d(video, 1).flatten(2).transpose(1, 2).view(1, -1, 2, 8).transpose(1, 2)


def attend(video: Tensor) -> Tensor:
    query = heads(video)
    return F.scaled_dot_product_attention(query, query.cos(), query.sin())


def attend_context(video: Tensor, context: Tensor) -> Tensor:
    """Two steps that read one context, so that it is pooled beforehand."""
    past, steps = heads(context), []
    for shift in (0.0, 0.5):
        query = heads(video + shift)
        key, value = torch.cat([past, query], 2), torch.cat([past.cos(), query.cos()], 2)
        steps.append(F.scaled_dot_product_attention(query, key, value))
    return torch.stack(steps)


def video(frames: int, height: int = 8, width: int = 8) -> Tensor:
    return torch.randn(1, 16, frames, height, width, generator=torch.Generator().manual_seed(frames))


def sites(remarks: Any) -> list[Remark]:
    return [
        r for r in remarks if r.pass_name == "sparse-attention" and r.kind in (RemarkKind.APPLIED, RemarkKind.MISSED)
    ]


def options(density: float, min_tokens: int | None) -> str:
    keys = "none" if min_tokens is None else min_tokens
    return f"sparse-attention{{tile=2x2x2,density={density},context-density=none,min-tokens={keys},min-frame-tiles=16}}"


def indifferent(answer: bool, asked: list[int] | None = None) -> Any:
    """A cost model with one answer, whatever it is asked."""

    def prefers(*arguments: Any, **_: Any) -> bool:
        if asked is not None:
            asked.append(arguments[6])
        return answer

    return prefers


@pytest.mark.parametrize("frames", [2, 4, 8])
@pytest.mark.parametrize("believed", [True, False])
def test_what_runs_is_what_was_said(frames, believed, ran, monkeypatch):
    """Every combination of density and ``min_tokens``, under a cost model that changes its mind after compiling."""
    feeds = {"video": video(frames)}
    program, tokens = trace_function(attend, feeds), frames * 64
    exact = run(program, feeds)[0]
    for density in (0.1, 0.5, 1.0):
        for min_tokens in (None, 0, 1, tokens, tokens + 1, ENOUGH):
            monkeypatch.setattr(cost, "prefers_sparse", indifferent(believed))
            copy, result = rewritten(program, options(density, min_tokens))
            (site,) = sites(result.remarks)
            claimed = site.kind is RemarkKind.APPLIED
            wanted = believed if min_tokens is None else tokens >= min_tokens
            assert claimed is (wanted and density < 1)
            ran.clear()
            monkeypatch.setattr(cost, "prefers_sparse", indifferent(not believed))
            planning.forget()
            found = run(copy, feeds)[0]
            assert ran == (["sparse"] if claimed else []), (density, min_tokens)
            assert torch.equal(found, exact) is not claimed
            if claimed:
                assert site.args["decided"] == "when compiled" and "by the gather kernel" in site.message
                assert site.flops_after < site.flops_before
            else:
                assert not site.flops_after and site.message.startswith("stays dense")


def test_prepared_pools_change_nothing_about_the_decision(ran, monkeypatch):
    feeds = {"video": video(4), "context": video(8)}
    monkeypatch.setattr(cost, "prefers_sparse", indifferent(True))
    program = trace_function(attend_context, feeds)
    copy, result = rewritten(program, f"hoist-invariants,{options(0.3, None)}")
    assert len(list(copy.calls(torch.ops.lightint.sparse_attention_prepared.default))) == 2
    monkeypatch.setattr(cost, "prefers_sparse", indifferent(False))
    run(copy, feeds)
    assert ran == ["sparse"] * 2 == ["sparse"] * len([s for s in sites(result.remarks) if s.kind is RemarkKind.APPLIED])


class Attention(nn.Module):
    """Sees its number of frames at each call."""

    def forward(self, video: Tensor) -> Tensor:
        return attend(video)


@pytest.mark.parametrize(
    ("min_tokens", "said", "sparse_at"),
    [
        (None, "at each call, by the cost model", lambda tokens: tokens > 400),
        (300, "at each call, sparse from 300 keys on", lambda tokens: tokens >= 300),
        (0, "when compiled", lambda tokens: True),
        (1, "when compiled", lambda tokens: True),
    ],
)
def test_a_size_that_only_a_call_knows_is_said_to_decide(min_tokens, said, sparse_at, ran, monkeypatch):
    monkeypatch.setattr(cost, "prefers_sparse", lambda *arguments, **_: arguments[6] > 400)
    program = trace(Attention(), {"video": video(8)}, dynamic={"video": 2})
    copy, result = rewritten(program, options(0.3, min_tokens))
    (site,) = sites(result.remarks)
    assert site.kind is RemarkKind.APPLIED and site.args["decided"] == said
    assert (said in site.message) is (said != "when compiled")
    for frames in (8, 4, 6, 8):
        ran.clear()
        run(copy, {"video": video(frames)})
        assert ran == ["sparse" if sparse_at(frames * 64) else "dense"]


def test_at_the_sizes_of_the_capture_a_call_decides_as_the_pass_did(ran, monkeypatch):
    """The pass and the operator ask with the same kept fraction and the same implementation."""
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(cost, "prefers_sparse", lambda *arguments, **_: asked.append(arguments) or True)
    program = trace(Attention(), {"video": video(8)}, dynamic={"video": 2})
    copy, _ = rewritten(program, options(0.02, None))
    run(copy, {"video": video(8)})
    ours, operators = asked
    assert (
        ours[2:7] == operators[2:7] and ours[7] == pytest.approx(operators[7]) and ours[8] == operators[8] == "gather"
    )


def test_where_no_kernel_runs_a_site_stays_dense_whatever_was_asked_for(monkeypatch):
    none = dispatch.Choice("reference", "the GPU kernels take head_dim 64, 96 and 128, not 8")
    monkeypatch.setattr(dispatch, "implementation", lambda query, tile=(): none)
    feeds = {"video": video(4)}
    copy, result = rewritten(trace_function(attend, feeds), options(0.3, 0))
    (site,) = sites(result.remarks)
    assert site.rule == "no-kernel" and none.reason in site.message
    assert torch.equal(run(copy, feeds)[0], attend(**feeds))


def test_a_compiled_module_reports_what_ran(ran, monkeypatch):
    monkeypatch.setattr(cost, "prefers_sparse", indifferent(False))
    module, feed = Attention(), video(4)
    chosen = {"preset": "sparse", "delegate": "eager", "tile": (2, 2, 2), "density": 0.3}
    for min_tokens, claimed in ((0, True), (None, False)):
        torch._dynamo.reset()
        ran.clear()
        compiled = torch.compile(module, backend="lightint", options={**chosen, "min_tokens": min_tokens})
        with torch.no_grad():
            found = compiled(feed)
        (section,) = lightint_compile.report(compiled).sections
        (site,) = sites(section.remarks)
        assert (site.kind is RemarkKind.APPLIED) is claimed
        assert ran == (["sparse"] if claimed else []) and torch.equal(found, module(feed)) is not claimed


def test_an_archive_keeps_the_decision(ran, monkeypatch, tmp_path: Path):
    """Exported where skipping was asked for, run where the cost model would not: it skips."""
    monkeypatch.setattr(cost, "prefers_sparse", indifferent(False))
    feed, chosen = video(4), {"preset": "sparse", "tile": (2, 2, 2), "density": 0.3, "min_tokens": 0}
    path = tmp_path / "attention.pt2"
    lightint_compile.export(Attention(), (feed,), path, options=chosen)
    loaded = lightint_compile.load(path)
    ran.clear()
    loaded(feed)
    assert ran == ["sparse"]


def test_the_report_says_why_the_faster_kernel_does_not_run(monkeypatch):
    """And the pass asks for the rates of the one that does."""
    asked: list[str] = []
    portable = dispatch.Choice("portable", "the sm_90 kernel is written for Triton 3.6 to 3.9, this is 3.10.0")
    monkeypatch.setattr(dispatch, "implementation", lambda query, tile=(): portable)
    monkeypatch.setattr(cost, "prefers_sparse", lambda *arguments, **_: asked.append(arguments[8]) or True)
    _, result = rewritten(trace_function(attend, {"video": video(4)}), options(0.3, None))
    (site,) = sites(result.remarks)
    assert f"by the portable kernel ({portable.reason})" in site.message and asked == ["portable"]
