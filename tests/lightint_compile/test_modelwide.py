"""A model and not a graph is held to ``require``, warned of once, and told of its graph breaks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightint_compile
from lightint_compile.errors import OptionError, PassError
from lightint_compile.passes.ir.remarks import RemarkKind
from lightint_compile.reporting import Report

CANON = "canonicalize-attention"
PLAIN = {"delegate": "eager", "preset": "exact"}
FIRST = {"preset": "exact", "delegate": "eager", "require": [CANON]}


@torch.compiler.disable
def outside(x: Tensor) -> Tensor:
    return x + 1


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by hand: what canonicalize-attention is for."""
    return torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1) @ v


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + attend(self.q(x), x, x)


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Layer()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * 2


class Between(Whole):
    """Harmless graphs on both sides of the one with attention."""

    def forward(self, x: Tensor) -> Tensor:
        x = outside(x * 3)
        x = self.layer(x)
        return outside(x) * 2


class NoAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.layer(outside(self.layer(x)))) + 1


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.layer(x))


class Cached(Whole):
    """Writes to the caller's cache where its attention is."""

    def forward(self, x: Tensor, cache: Tensor) -> Tensor:
        x = outside(x * 3)
        cache[:, ::2] = x[:, :3]
        return self.layer(x) + attend(x, cache, cache)


class Looped(Whole):
    """A break inside a loop: Dynamo gives ``forward`` up, and what it calls becomes a graph each."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = outside(self.layer(x))
        return x


def compiled(module: Any, **options: Any) -> Any:
    torch._dynamo.reset()
    if isinstance(module, nn.Module):
        module = module.eval().requires_grad_(False)
    return torch.compile(module, backend="lightint", options={**PLAIN, **options})


def inner(caught: pytest.ExceptionInfo[BaseException]) -> BaseException:
    return getattr(caught.value, "inner_exception", caught.value)


X = torch.randn(1, 6, 8)
CACHE = torch.zeros(1, 6, 8)


@pytest.fixture(autouse=True)
def inference() -> Any:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("module", [Whole(), Between(), Looped()], ids=lambda m: type(m).__name__)
def test_a_pass_that_acts_in_one_graph_of_the_model_is_enough(module: nn.Module) -> None:
    function = compiled(module, require=[CANON])
    torch.testing.assert_close(function(X), module(X))
    assert lightint_compile.report(function).rewritten
    assert lightint_compile.explain(module, X, options=FIRST).rewritten


def test_where_it_acts_in_none_the_last_graph_of_the_call_raises() -> None:
    for module in (NoAttention(), nn.Linear(8, 8)):
        with pytest.raises(
            Exception, match=f"required pass {CANON} rewrote nothing in {type(module).__name__}"
        ) as caught:
            compiled(module, require=[CANON])(X)
        assert isinstance(inner(caught), PassError)
        with pytest.raises(PassError, match="rewrote nothing"):
            lightint_compile.explain(module, X, options=FIRST)


def test_outlining_that_gains_nothing_is_told_as_undone_unless_it_is_required() -> None:
    module = Dense()
    function = compiled(module)
    torch.testing.assert_close(function(X), module(X))
    (section,) = lightint_compile.report(function).sections
    assert section.untouched and not section.rewritten
    assert section.nodes_before == section.nodes_after
    assert [remark.pass_name for remark in section.of_kind(RemarkKind.MISSED)] == ["outline-regions"]
    function = compiled(module, require=["outline-regions"])
    torch.testing.assert_close(function(X), module(X))
    (section,) = lightint_compile.report(function).sections
    assert not section.untouched and section.rewritten == 1


def test_where_no_graph_is_the_last_the_report_raises() -> None:
    module = Looped()
    module.layer = Dense()
    function = compiled(module, require=[CANON])
    function(X)
    with pytest.raises(PassError, match="rewrote nothing"):
        lightint_compile.report(function)


def test_a_refused_graph_with_the_attention_raises_at_once_and_names_the_line() -> None:
    with pytest.raises(Exception, match="cannot act in Cached") as caught:
        compiled(Cached(), require=[CANON])(X, CACHE.clone())
    error = inner(caught)
    assert isinstance(error, PassError) and "the graph writes to its inputs" in error.why
    assert error.where == line_of("cache[:, ::2] = x[:, :3]") and "return new values" in error.fix
    with pytest.raises(PassError, match="cannot act in Cached"):
        lightint_compile.explain(Cached().eval(), X, CACHE.clone(), options=FIRST)
    with torch.enable_grad(), pytest.raises(Exception, match="cannot act in Whole") as caught:
        torch.compile(Whole(), backend="lightint", options=FIRST)(X)
    assert "torch.no_grad()" in str(inner(caught))


def test_a_required_pass_that_is_not_run_is_an_option_error_with_every_preset() -> None:
    for preset in ("off", "exact"):
        with pytest.raises(Exception, match="not part of the pipeline") as caught:
            compiled(Whole(), preset=preset, require=["sparse-attention"])(X)
        assert isinstance(inner(caught), OptionError)


def test_a_refused_core_is_one_warning_and_fragments_none(caplog: pytest.LogCaptureFixture) -> None:
    function = compiled(Cached())
    with caplog.at_level(logging.WARNING, "lightint_compile"):
        function(X, CACHE.clone())
        function(torch.randn(2, 5, 8), torch.zeros(2, 6, 8))
    (warning,) = [record.message for record in caplog.records]
    assert warning.startswith("Cached is not rewritten where its attention is")
    assert line_of("cache[:, ::2] = x[:, :3]") in warning and "writes to its inputs" in warning
    caplog.clear()
    with caplog.at_level(logging.WARNING, "lightint_compile"):
        for module in (NoAttention(), Between(), Looped()):
            compiled(module)(X)
    assert not caplog.records


def test_a_pass_asked_for_by_name_that_did_nothing_is_one_warning_a_model(caplog: pytest.LogCaptureFixture) -> None:
    for module, warned in ((Between(), 0), (NoAttention(), 1)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "lightint_compile"):
            function = compiled(module, preset="exact", passes=CANON)
            function(X)
            function(torch.randn(2, 5, 8))
        messages = [record.message for record in caplog.records]
        assert len(messages) == warned and all(f"{CANON} was asked for and rewrote nothing" in m for m in messages)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "lightint_compile"):
            lightint_compile.explain(module, X, options={"passes": CANON})
        assert len(caplog.records) == warned


def test_a_pass_that_waits_for_a_calibration_is_not_said_to_find_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """With a budget a module runs exactly until it is calibrated; what its budget may allow has looked at nothing."""
    with caplog.at_level(logging.WARNING, "lightint_compile"):
        compiled(NoAttention(), preset="published", max_relative_error=0.1)(X)
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "lightint_compile"):
        compiled(NoAttention(), preset="published")(X)
    assert any("sparse-attention was asked for" in record.message for record in caplog.records)


def breaks(report: Report) -> list[Any]:
    return [r for section in report.sections for r in section.remarks if r.pass_name == "graph-break"]


def line_of(text: str) -> str:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return f"{__file__}:{next(number for number, line in enumerate(lines, 1) if line.strip() == text)}"


def reports(module: Any, *args: Any) -> list[Report]:
    """From a run, and from a dry run."""
    function = compiled(module)
    function(*args)
    return [lightint_compile.report(function), lightint_compile.explain(module, *args, options=PLAIN)]


def test_a_break_is_told_with_its_reason_its_line_what_it_costs_and_the_fix() -> None:
    for report in reports(Between(), X):
        first = breaks(report)[0]
        assert first.rule == "ends" and first.source == line_of("x = outside(x * 3)")
        assert "torch.compiler.disable" in first.message and "No pass sees across it" in first.message
        assert "1 tensors (0.0 MiB)" in first.message and first.hint.startswith("Remove the `torch.compiler.disable`")
        assert "graph breaks" in str(report) and "test_modelwide.py" in str(report)
        assert Report.from_dict(report.to_dict()).sections == report.sections


def test_a_break_in_front_of_the_first_graph_is_told_too() -> None:
    def late(x: Tensor) -> Tensor:
        x = outside(x)
        return attend(x, x, x)

    for report in reports(late, X):
        (only,) = breaks(report)
        assert only.rule == "begins" and only.source == line_of("x = outside(x)")


def test_a_function_that_dynamo_gave_up_is_told_of_and_has_a_report() -> None:
    layer = Layer().eval().requires_grad_(False)

    def looped(x: Tensor) -> Tensor:
        for _ in range(2):
            x = outside(layer(x))
        return x

    for subject in (looped, Looped()):
        for report in reports(subject, X):
            given_up = next(remark for remark in breaks(report) if remark.rule == "given-up")
            name = "looped" if subject is looped else "Looped.forward"
            assert f"{name} runs outside of any graph" in given_up.message and given_up.source.startswith(__file__)
            assert report.rewritten


def test_reports_of_two_functions_that_share_a_module_are_told_apart() -> None:
    layer = Layer().eval().requires_grad_(False)
    other = Dense().requires_grad_(False)

    def make(part: nn.Module) -> Callable[[Tensor], Tensor]:
        def looped(x: Tensor) -> Tensor:
            for _ in range(2):
                x = outside(part(x))
            return x

        return looped

    functions = [compiled(make(layer)), torch.compile(make(other), backend="lightint", options=PLAIN)]
    for function in functions:
        function(X)
    rows = [
        [row for s in lightint_compile.report(f).sections for row in s.passes if row.name == CANON] for f in functions
    ]
    assert [sum(row.rewritten for row in each) for each in rows] == [1, 0]


class Stored(nn.Module):
    """One graph, which does not read all that the module has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Layer()
        self.register_buffer("cache", torch.zeros(1, 6, 8))

    def forward(self, x: Tensor, prompt: Tensor | None = None) -> Tensor:
        return self.layer(x)


class Parted(Stored):
    def forward(self, x: Tensor, prompt: Tensor | None = None) -> Tensor:
        return outside(self.layer(x)) * 2


STATED = [{"roles": {"cameras": "camera"}}, {"roles": {"cam*": "camera"}}, {"grids": {"zzz": [None, 2, 3]}}]


@pytest.mark.parametrize("options", STATED, ids=str)
def test_a_name_that_no_input_has_is_an_error_of_a_model_that_is_one_graph(options: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="there is no input") as caught:
        compiled(Stored(), **options)(X)
    error = inner(caught)
    assert isinstance(error, OptionError) and error.where.startswith("options[") and "known: prompt, x" in error.fix
    with pytest.raises(OptionError, match="there is no input"):
        lightint_compile.explain(Stored().eval(), X, options=options)


class Open(Parted):
    """Its arguments are not known by name."""

    def forward(self, x: Tensor, **more: Any) -> Tensor:
        return outside(self.layer(x)) * 2


@pytest.mark.parametrize("name", ["x", "prompt", "prompt.mask", "cache", "ca*e"])
@pytest.mark.parametrize("model", [Stored, Parted, Open])
def test_what_the_model_has_may_be_named_where_a_graph_does_not_read_it(
    name: str, model: type[nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "lightint_compile"):
        compiled(model(), roles={name: "context"})(X)
    assert not [record for record in caplog.records if "names no input" in record.message]


@pytest.mark.parametrize("options", STATED, ids=str)
def test_a_name_that_no_graph_of_a_model_has_is_one_warning(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    function = compiled(Parted(), **options)
    with caplog.at_level(logging.WARNING, "lightint_compile"):
        function(X)
        function(torch.randn(2, 5, 8))
    (said,) = [record.message for record in caplog.records if "names no input" in record.message]
    assert said.startswith("options[") and "of Parted" in said and "known: " in said


def test_modules_of_a_pipeline_may_have_the_inputs_of_each_other(caplog: pytest.LogCaptureFixture) -> None:
    module = Stored().eval().requires_grad_(False)
    stated: dict[str, Any] = {**PLAIN, "roles": {"cameras": "camera"}}
    with lightint_compile.accelerate(module, **stated), caplog.at_level(logging.WARNING, "lightint_compile"):
        module(X)
        module(X)
    (said,) = [record.message for record in caplog.records if "names no input" in record.message]
    assert "Another module of the pipeline may have it" in said
