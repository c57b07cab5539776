"""The dry run: one graph or several, nothing compiled, nothing allocated, honest when nothing applies."""

from __future__ import annotations

import pytest
import torch

import lightint_compile
from lightint_compile.compiled import CompiledGraph
from lightint_compile.errors import InputError, OptionError, PassError
from lightint_compile.passes.ir.remarks import RemarkKind

PLAIN = {"passes": "outline-regions"}


class Block(torch.nn.Module):
    def __init__(self, breaks: bool = False) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(8)
        self.linear = torch.nn.Linear(8, 8)
        self.breaks = breaks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.gelu(self.linear(self.norm(x)))
        if self.breaks:
            torch._dynamo.graph_break()
        return x + y


def stack(breaks: bool = False) -> torch.nn.Module:
    return torch.nn.Sequential(*(Block(breaks and index == 1) for index in range(4))).requires_grad_(False)


@pytest.fixture(autouse=True)
def no_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a dry run must not compile")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", refuse)
    monkeypatch.setattr("torch._inductor.standalone_compile", refuse)


def test_one_graph_is_one_section_named_after_the_module() -> None:
    report = lightint_compile.explain(stack(), torch.randn(2, 8), options=PLAIN)
    assert [section.name for section in report.sections] == ["Sequential"]
    assert report.rewritten > 0
    assert len(report.graph.graph.nodes) < len(report.original.graph.nodes)


def test_the_call_is_not_run_when_it_is_one_graph() -> None:
    report = lightint_compile.explain(stack().to("meta"), torch.empty(2, 8, device="meta"), options=PLAIN)
    assert report.rewritten > 0


def test_a_graph_break_makes_a_section_each() -> None:
    report = lightint_compile.explain(stack(breaks=True), torch.randn(2, 8), options=PLAIN)
    assert len(report.sections) > 1 and {section.name for section in report.sections} == {"Sequential"}
    assert f"(graph 2 of {len(report.sections)})" in str(report)


def test_errors_of_options_and_requirements_come_through_graph_breaks() -> None:
    with pytest.raises(OptionError):
        lightint_compile.explain(stack(), torch.randn(2, 8), options={"preset": "exakt"})
    options = {"passes": "canonicalize-attention", "require": ["canonicalize-attention"]}
    for breaks in (False, True):
        with pytest.raises(PassError, match="rewrote nothing"):
            lightint_compile.explain(stack(breaks), torch.randn(2, 8), options=options)


def test_a_graph_that_writes_to_a_strided_part_of_its_input_is_left_alone_and_says_why() -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        x[::2].add_(1)
        return x * 2

    report = lightint_compile.explain(step, torch.randn(2), options=PLAIN)
    assert "writes to its inputs" in report.sections[0].untouched
    assert "left as it is" in str(report)


def test_preset_off_is_said_to_leave_the_graph_alone() -> None:
    report = lightint_compile.explain(stack(), torch.randn(2, 8), options={"preset": "off"})
    assert "hands the graph to Inductor as it is" in str(report)


def test_a_model_that_would_need_gradients_is_explained_as_inference() -> None:
    model = stack().requires_grad_(True)
    remarks = lightint_compile.explain(model, torch.randn(2, 8), options=PLAIN).sections[0].remarks
    assert (remarks[-1].kind, remarks[-1].rule) == (RemarkKind.ANALYSIS, "inference")
    with torch.no_grad():
        remarks = lightint_compile.explain(model, torch.randn(2, 8), options=PLAIN).sections[0].remarks
    assert all(remark.rule != "inference" for remark in remarks)


def test_a_compiled_module_is_explained_like_the_module_itself() -> None:
    compiled = torch.compile(stack(), backend="lightint", options=PLAIN)
    assert lightint_compile.explain(compiled, torch.randn(2, 8), options=PLAIN).rewritten > 0


def test_symbolic_sizes_are_explained() -> None:
    report = lightint_compile.explain(stack(), torch.randn(5, 8), dynamic={"input": 0}, options=PLAIN)
    first = next(node for node in report.original.graph.nodes if node.op == "call_function")
    assert isinstance(first.meta["val"].shape[0], torch.SymInt)


@pytest.mark.parametrize(
    ("dynamic", "said"),
    [
        ({"inputs": 0}, "did you mean 'input'?"),
        ({"input": 2}, "'input' has no axis 2"),
        ({"input": -3}, "name axes from 0 to 1"),
        ({"input": [0, 5]}, "'input' has no axis 5"),
        ({"input": "0"}, "'0' is no axis"),
        ({"input": True}, "True is no axis"),
        ({"input": 0}, "axis 0 of 'input' cannot be symbolic"),
        ("input", "names no dimensions"),
    ],
)
@pytest.mark.parametrize("breaks", [False, True])
def test_a_symbolic_size_that_cannot_be_is_an_error(dynamic: object, said: str, breaks: bool) -> None:
    rows = 1 if dynamic == {"input": 0} else 5
    with pytest.raises(InputError) as caught:
        lightint_compile.explain(stack(breaks), torch.randn(rows, 8), dynamic=dynamic, options=PLAIN)
    assert said in str(caught.value) and caught.value.where.startswith("dynamic")


def test_axes_count_from_the_end_too_and_further_keywords_have_names() -> None:
    def scaled(**more: torch.Tensor) -> torch.Tensor:
        return more["tokens"] * 2

    report = lightint_compile.explain(scaled, tokens=torch.randn(5, 8), dynamic={"tokens": -2}, options=PLAIN)
    sizes = next(node for node in report.original.graph.nodes if node.op == "call_function").meta["val"].shape
    assert isinstance(sizes[0], torch.SymInt) and sizes[1] == 8


def test_a_call_without_tensor_operations_has_nothing_to_report() -> None:
    report = lightint_compile.explain(lambda: 3, options=PLAIN)
    assert report.sections == () and "nothing was captured" in str(report)


def test_an_error_of_the_model_is_the_users_to_see() -> None:
    with pytest.raises(Exception, match=r"shape|size"):
        lightint_compile.explain(stack(), torch.randn(2, 9), options=PLAIN)


@pytest.mark.parametrize("breaks", [False, True])
def test_nothing_is_left_behind(breaks: bool) -> None:
    """Compiled modules, their reports and what is known of changing sizes stay; no room for recompiling is used up."""
    torch._dynamo.reset()
    model, other = stack(breaks), stack()
    options = {"delegate": "eager", **PLAIN}
    compiled = torch.compile(model, backend="lightint", options=options)
    with torch.no_grad():
        compiled(torch.randn(2, 8))
        graphs = CompiledGraph.of(compiled)
        for rows in range(3, 12):
            lightint_compile.explain(other, torch.randn(rows, 8), options=PLAIN)
        if not breaks:
            for rows in range(3, 12):
                lightint_compile.explain(model, torch.randn(rows, 8), options=PLAIN)
        assert CompiledGraph.of(compiled) == graphs and lightint_compile.report(compiled).sections
        with torch._dynamo.config.patch(error_on_recompile=True):
            compiled(torch.randn(2, 8))


@pytest.mark.parametrize("breaks", [False, True])
def test_a_dry_run_before_compiling_changes_nothing_about_it(breaks: bool) -> None:
    torch._dynamo.reset()
    model = stack(breaks)
    for rows in range(2, 12):
        lightint_compile.explain(model, torch.randn(rows, 8), options=PLAIN)
    compiled = torch.compile(model, backend="lightint", options={"delegate": "eager", **PLAIN})
    with torch.no_grad(), torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        compiled(torch.randn(20, 8))
    assert all(isinstance(node.meta["val"].shape[0], int) for node in _calls(compiled))


def _calls(compiled: torch.nn.Module) -> list[torch.fx.Node]:
    graphs = [section.original for section in lightint_compile.report(compiled).sections]
    return [node for graph in graphs if graph for node in graph.graph.nodes if node.op == "call_function"]


def test_sizes_are_symbolic_for_one_dry_run_only() -> None:
    x = torch.randn(5, 8)
    lightint_compile.explain(stack(), x, dynamic={"input": 0}, options=PLAIN)
    report = lightint_compile.explain(stack(), x, options=PLAIN)
    first = next(node for node in report.original.graph.nodes if node.op == "call_function")
    assert first.meta["val"].shape[0] == 5 and isinstance(first.meta["val"].shape[0], int)
