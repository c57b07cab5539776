"""Nothing approximates unasked: a model without cameras is exact by default, a world model says that it is not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import zoo
from quick_variants import mostly_slow
from toy_world import ToyWorld, there_and_back, toy_rollout, walk

import lightint_compile
from lightint_compile.options import LightintOptions
from lightint_compile.options.pipelines import pipeline_of, unasked_passes
from lightint_compile.options.presets import PRESETS
from lightint_compile.passes.ir.remarks import Numerics, RemarkKind
from lightint_compile.reporting import Report

PLAIN = ("wan", "hunyuan_video", "cogvideox", "ltx")
QUICK = ("wan", "ltx")


@pytest.fixture
def sparse_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightint_compile.kernels.cost.prefers_sparse", lambda *_, **__: True)


def approximated(report: Report) -> set[str]:
    applied = [r for s in report.sections for r in s.remarks if r.kind is RemarkKind.APPLIED]
    return {remark.pass_name for remark in applied if remark.numerics is Numerics.APPROXIMATE}


def said(report: Report, rule: str) -> list[Any]:
    return [remark for section in report.sections for remark in section.remarks if remark.rule == rule]


def large_wan() -> tuple[torch.nn.Module, dict[str, Any]]:
    module, kwargs = zoo.build("wan")
    return module, kwargs | {"hidden_states": torch.randn(1, 4, 4, 48, 64)}


@pytest.mark.usefixtures("sparse_pays")
def test_a_plain_video_transformer_stays_exact_and_hears_what_sparse_would_save() -> None:
    module, kwargs = large_wan()
    report = lightint_compile.explain(module, **kwargs)
    assert not approximated(report)
    (offer,) = said(report, "unasked")
    assert offer.pass_name == "sparse-attention" and offer.args["places"] == 2
    assert 0 < offer.flops_after < offer.flops_before == report.sections[0].flops[0]
    assert '"preset": "sparse"' in offer.hint and "max_relative_error" in offer.hint
    assert "left out: it would save" in str(report) and not said(report, "approximate")
    exact = lightint_compile.explain(module, options={"preset": "exact"}, **kwargs)
    assert report.sections[0].flops == exact.sections[0].flops and not said(exact, "unasked")


@pytest.mark.usefixtures("sparse_pays")
@pytest.mark.parametrize("name", mostly_slow(PLAIN, quick=QUICK))
def test_no_model_without_cameras_is_approximated_by_default(name: str) -> None:
    """Sizes of the zoo are too small for a gain, so the passes are told that it pays."""
    from lightint_compile.pipeline_run import rewrite

    rewritten = rewrite(zoo.program(name).snapshot(), LightintOptions())
    numerics = {remark.numerics for remark in rewritten.remarks if remark.kind is RemarkKind.APPLIED}
    assert Numerics.APPROXIMATE not in numerics and "sparse-attention" not in rewritten.pipeline


@pytest.mark.usefixtures("sparse_pays")
@pytest.mark.parametrize(
    "options",
    [
        {"preset": "sparse"},
        {"density": 0.3},
        pytest.param({"min_tokens": 0}, marks=pytest.mark.slow),
        {"require": ["sparse-attention"]},
        {"approximate": True},
        pytest.param({"passes": "sparse-attention"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_who_asks_for_it_gets_it(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    module, kwargs = large_wan()
    with caplog.at_level(logging.WARNING, "lightint_compile"):
        report = lightint_compile.explain(module, options=options, **kwargs)
    assert "sparse-attention" in approximated(report) and not said(report, "unasked")
    assert not caplog.records


def test_what_is_unasked_goes_by_the_options_alone() -> None:
    everything = ("adaptive-context", "context-reuse", "sparse-attention", "step-cache")
    assert unasked_passes(LightintOptions()) == everything
    assert unasked_passes(LightintOptions(drift=0.1)) == ("adaptive-context", "sparse-attention")
    assert unasked_passes(LightintOptions(without=("sparse-attention",), overlap=0.5)) == ("context-reuse",)
    for name in PRESETS:
        if name != "all":
            assert unasked_passes(LightintOptions(preset=name)) == ()


def test_the_settings_of_a_budget_ask_for_what_they_approximate() -> None:
    from lightint_compile.options.ladder import ladder_of

    options = LightintOptions(max_relative_error=0.05)
    for rung in ladder_of(options):
        setting = rung.applied_to(options)
        running = {s.name for s in pipeline_of(setting).passes if s.numerics is Numerics.APPROXIMATE}
        assert not running.intersection(unasked_passes(setting))


def test_a_world_model_is_approximated_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    torch._dynamo.reset()
    model = ToyWorld(steps=3).eval().requires_grad_(False)
    compiled = torch.compile(model, backend="lightint", options={"delegate": "eager"})
    with caplog.at_level(logging.WARNING, "lightint_compile"):
        toy_rollout(compiled, there_and_back(12))
        toy_rollout(compiled, there_and_back(12), size=(6, 6))
    assert len(lightint_compile.report(compiled).sections) > 2
    (warning,) = [record.message for record in caplog.records]
    assert warning.startswith("ToyWorld: results are approximate, by adaptive-context and step-cache")
    assert '{"preset": "exact"}' in warning and "max_relative_error" in warning


@pytest.mark.parametrize(
    "options", [pytest.param({"preset": "exact"}, marks=pytest.mark.slow), {"max_relative_error": 0.05}], ids=str
)
def test_what_is_exact_or_bounded_does_not_say_so(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    torch._dynamo.reset()
    model = ToyWorld().eval().requires_grad_(False)
    with caplog.at_level(logging.WARNING, "lightint_compile"):
        toy_rollout(torch.compile(model, backend="lightint", options={"delegate": "eager", **options}), walk(8))
    assert not caplog.records


@pytest.mark.usefixtures("sparse_pays")
def test_inside_of_a_rollout_its_cameras_ask(caplog: pytest.LogCaptureFixture) -> None:
    module, kwargs = large_wan()
    with lightint_compile.rollout(cameras=there_and_back(8)[0]):
        inside = lightint_compile.explain(module, **kwargs)
    assert approximated(inside) == {"sparse-attention"} and said(inside, "approximate")
    assert not approximated(lightint_compile.explain(module, **kwargs))


def called(function: Callable[..., torch.Tensor], inside: bool, **kwargs: Any) -> torch.Tensor:
    with torch.no_grad():
        if not inside:
            return function(**kwargs)[0]
        with lightint_compile.rollout(cameras=there_and_back(8)[0]) as run:
            run.chunk(0)
            return run.step(0, lambda: function(**kwargs))[0]


@pytest.mark.usefixtures("sparse_pays")
@pytest.mark.parametrize(
    ("order", "way"),
    [
        pytest.param((True, False, True), "torch.compile", id="inside first-torch.compile"),
        pytest.param((True, False, True), "accelerate", id="inside first-accelerate", marks=pytest.mark.slow),
        pytest.param((False, True, False), "torch.compile", id="outside first-torch.compile", marks=pytest.mark.slow),
        pytest.param((False, True, False), "accelerate", id="outside first-accelerate"),
    ],
)
def test_a_rollout_says_nothing_of_calls_outside_of_it(
    order: tuple[bool, ...], way: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch._dynamo.reset()
    module, kwargs = large_wan()
    exact = called(module, inside=False, **kwargs)
    handle = lightint_compile.accelerate(module, delegate="eager") if way == "accelerate" else None
    compiled = module if handle else torch.compile(module, backend="lightint", options={"delegate": "eager"})
    with caplog.at_level(logging.WARNING, "lightint_compile"):
        found = [(inside, called(compiled, inside, **kwargs)) for inside in order]
    for inside, result in found:
        assert torch.allclose(result, exact, rtol=1e-4, atol=1e-5) != inside
    assert [r.message for r in caplog.records if "results are approximate" in r.message] == [caplog.records[0].message]
    report = handle.report() if handle else lightint_compile.report(compiled)
    assert {r.message.partition(":")[0] for r in said(report, "rollout")} == {
        "runs inside of rollouts",
        "runs outside of rollouts",
    }
    if handle:
        handle.undo()


@pytest.mark.usefixtures("sparse_pays")
def test_a_rollout_says_nothing_of_other_models_of_its_class() -> None:
    torch._dynamo.reset()
    (one, kwargs), (other, _) = large_wan(), large_wan()
    options = {"delegate": "eager"}
    called(torch.compile(one, backend="lightint", options=options), inside=True, **kwargs)
    found = called(torch.compile(other, backend="lightint", options=options), inside=False, **kwargs)
    torch.testing.assert_close(found, called(other, inside=False, **kwargs), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("sparse_pays")
@pytest.mark.parametrize(
    "options",
    [
        {"preset": "sparse"},
        pytest.param({"preset": "exact"}, marks=pytest.mark.slow),
        pytest.param({"approximate": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_who_asked_gets_one_graph_in_and_outside_of_rollouts(options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    module, kwargs = large_wan()
    compiled = torch.compile(module, backend="lightint", options={"delegate": "eager", **options})
    torch.testing.assert_close(*(called(compiled, inside, **kwargs) for inside in (False, True)))
    report = lightint_compile.report(compiled)
    assert len(report.sections) == 1 and not said(report, "rollout")


def test_a_graph_in_which_nothing_approximates_is_one(fresh_dynamo: None) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 8))
    compiled = torch.compile(module, backend="lightint", options={"delegate": "eager"})
    for inside in (True, False):
        called(lambda input: compiled(input), inside, input=torch.randn(2, 8))
    assert len(lightint_compile.report(compiled).sections) == 1
