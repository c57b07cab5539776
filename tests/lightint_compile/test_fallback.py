"""No fault of ours reaches the caller: every stage raises in turn, the result is eager's, and one remark says so."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._inductor.exc import InductorError

import lightint_compile
from lightint_compile import compilation, fallback, lowering
from lightint_compile import pipeline_run as rewrite
from lightint_compile.compiled import CompiledGraph
from lightint_compile.fallback import ENOUGH
from lightint_compile.lowering import artifact_store as store
from lightint_compile.lowering import driver
from lightint_compile.lowering import region as leaf
from lightint_compile.options.presets import PRESETS
from lightint_compile.passes import pipeline
from lightint_compile.passes.ir.remarks import RemarkKind
from lightint_compile.passes.registry import PASSES, pass_class


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(x + text.mean(1, True)).chunk(3, -1))
        weights = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
        return x + self.out((weights @ v).transpose(1, 2).flatten(2))


class Model(nn.Module):
    """Repeated blocks, hand-written attention, a text projection that is kept between calls, a repeat to sink."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(2)])
        self.text, self.scale = nn.Linear(12, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        text = self.text(text)
        for block in self.blocks:
            x = block(x, text)
        return x * F.silu(self.scale(x[:, :2].repeat_interleave(3, 1)))


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model().eval().requires_grad_(False)


def _inputs(batch: int = 1) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 6, 16, generator=draw), torch.randn(batch, 5, 12, generator=draw)


def _compiled(model: nn.Module, **options: Any) -> Any:
    return torch.compile(model, backend="lightint", options={"delegate": "eager", **options})


class InjectedError(RuntimeError):
    """Nothing but a test raises it."""


def _raises(*_: Any, **__: Any) -> Any:
    raise InjectedError("a fault of ours\nwith a second line")


def _failures(compiled: Any) -> list[str]:
    found = [r for s in lightint_compile.report(compiled).sections for r in s.of_kind(RemarkKind.FAILURE)]
    return [remark.message for remark in found]


def _break(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    owner, name = STAGES[stage]
    monkeypatch.setattr(owner, name, _raises)


STAGES: dict[str, tuple[Any, str]] = {
    "capture": (compilation.capture, "from_dynamo"),
    "counting": (rewrite, "work_of"),
    "forgetting guards": (rewrite, "forget_guards"),
    "telling": (rewrite, "_tell"),
    "lowering": (lowering, "_regions"),
    "fresh inputs": (leaf, "fresh_inputs"),
    "compiling a region": (leaf, "standalone"),
    "the driver's source": (lowering, "driver_source"),
    "the driver": (driver, "compiled_source"),
    "the guard against Inductor": (compilation, "_guards_against_inductor"),
    "a call": (driver.Driver, "__call__"),
    "a memo": (driver.Memo, "__call__"),
    "a decision": (driver.Decisions, "call"),
    "a region's guard": (leaf.Variant, "holds"),
}


SLOWLY = {"counting", "forgetting guards", "telling", "fresh inputs", "the driver's source", "a call"}
"""Stages in front of or behind which another one raises in the same way."""


@pytest.mark.parametrize(
    "stage", [pytest.param(stage, marks=pytest.mark.slow) if stage in SLOWLY else stage for stage in STAGES]
)
def test_a_stage_that_raises_costs_speed_and_nothing_else(
    stage: str, model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _break(monkeypatch, stage)
    compiled = _compiled(model)
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        for batch in (1, 2, 1):
            torch.testing.assert_close(compiled(*_inputs(batch)), model(*_inputs(batch)))
    failures = _failures(compiled)
    assert failures, "the report says nothing of it"
    assert all("InjectedError: a fault of ours" in said and "second line" not in said for said in failures)
    assert "please report" in caplog.text and "Traceback" not in caplog.text


@pytest.mark.parametrize("stage", STAGES)
def test_strict_raises_it(stage: str, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    _break(monkeypatch, stage)
    with torch.no_grad(), pytest.raises(Exception, match="a fault of ours"):
        _compiled(model, strict=True)(*_inputs())


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_that_raises_is_undone(name: str, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pass_class(name), "run", _raises)
    rest = {} if name in PRESETS["all"].passes else {"passes": f"{name},outline-regions"}
    compiled = _compiled(model, preset="all", approximate=True, **rest)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*_inputs()), model(*_inputs()))
    assert any("InjectedError" in said for said in _failures(compiled))


def test_what_does_not_verify_is_undone(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "verify", _raises)
    compiled = _compiled(model)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*_inputs()), model(*_inputs()))
    assert any("undone" in said for said in _failures(compiled))


def test_regions_that_cannot_be_lowered_leave_the_other_rewrites(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    lower = compilation.lower

    def fails_on_regions(program: Any, *rest: Any) -> Any:
        if lowering._outlined(program):
            _raises()
        return lower(program, *rest)

    monkeypatch.setattr(compilation, "lower", fails_on_regions)
    compiled = _compiled(model)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*_inputs()), model(*_inputs()))
    (section,) = lightint_compile.report(compiled).sections
    assert {row.name for row in section.passes if row.rewritten} >= {"canonicalize-attention"}
    assert "outline-regions" not in section.pipeline and len(section.of_kind(RemarkKind.FAILURE)) == 1


def test_a_required_pass_is_never_left_out(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    _break(monkeypatch, "lowering")
    with torch.no_grad(), pytest.raises(Exception, match=r"PassError: .* required outline-regions"):
        _compiled(model, require=["outline-regions"])(*_inputs())


def test_a_later_size_that_cannot_be_compiled_runs_operation_by_operation(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = _compiled(model)
    x, text = _inputs()
    with torch.no_grad():
        compiled(x, text)
        (graph,) = CompiledGraph.of(compiled)
        assert graph.driver is not None
        for region in graph.driver.leaves.values():
            region.variants.clear()
        graph.driver.reset()
        made: list[Any] = []
        monkeypatch.setattr(leaf, "fresh_inputs", lambda *_: made.append(_) or _raises())
        for _ in range(3):
            torch.testing.assert_close(compiled(x, text), model(x, text))
    assert len(made) == len(graph.driver.leaves), "a form that cannot be compiled is not tried again"
    assert graph.function.failure is None, "the other regions run as they were compiled"  # type: ignore[attr-defined]
    assert any("for another size" in said for said in _failures(compiled))


def test_a_program_that_fails_every_time_is_left(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = _compiled(model)
    calls: list[Any] = []
    with torch.no_grad():
        compiled(*_inputs())
        monkeypatch.setattr(driver.Driver, "__call__", lambda *_: calls.append(_) or _raises())
        for _ in range(ENOUGH + 2):
            torch.testing.assert_close(compiled(*_inputs()), model(*_inputs()))
    assert len(calls) == ENOUGH
    assert len(_failures(compiled)) == 1


def test_what_fails_every_time_is_compiled_by_inductor_as_it_is(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.compile(model, backend="lightint", fullgraph=True)
    made = []
    stock = torch._inductor.compile_fx.compile_fx

    def counted(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("config_patches"):  # it calls itself once they are in force
            made.append(args)
        return stock(*args, **kwargs)

    with torch.no_grad():
        compiled(*_inputs())
        monkeypatch.setattr(driver.Driver, "__call__", _raises)
        monkeypatch.setattr(
            torch._inductor.compile_fx,
            "compile_fx",
            counted,
        )
        for call in range(ENOUGH + 2):
            assert len(made) == (call > ENOUGH)
            torch.testing.assert_close(compiled(*_inputs()), model(*_inputs()))
    assert len(made) == 1
    (failure,) = _failures(compiled)
    assert "until Inductor compiles it" in failure


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_what_eager_would_raise_too_comes_through(
    error: BaseException, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = _compiled(model)

    def stopped(*_: Any) -> None:
        raise error

    with torch.no_grad():
        compiled(*_inputs())
        monkeypatch.setattr(driver.Driver, "__call__", stopped)
        with pytest.raises(type(error)) as raised:
            compiled(*_inputs())
    assert raised.value is error


def test_the_callers_own_error_is_eagers_and_does_not_drag_ours_along() -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.a = nn.Embedding(4, 8), nn.Linear(8, 8)

        def forward(self, index: Tensor) -> Tensor:
            return self.a(self.table(index).repeat_interleave(4, 0))

    module = Lookup().eval().requires_grad_(False)
    compiled = _compiled(module)
    with torch.no_grad():
        compiled(torch.tensor([1, 2]))
        with pytest.raises(IndexError) as expected:
            module(torch.tensor([1, 9]))
        with pytest.raises(IndexError) as raised:
            compiled(torch.tensor([1, 9]))
        assert str(raised.value) == str(expected.value) and raised.value.__context__ is None
        torch.testing.assert_close(compiled(torch.tensor([3, 0])), module(torch.tensor([3, 0])))
    assert not _failures(compiled)


@pytest.mark.parametrize("part", ["key_of", "guard_holds", "guard_of", "Store.load", "Store.save"])
def test_the_store_is_never_needed(part: str, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = store.Store if part.startswith("Store.") else compilation
    monkeypatch.setattr(owner, part.removeprefix("Store."), _raises)
    for _ in range(2):
        torch._dynamo.reset()
        compiled = _compiled(model, delegate="inductor")
        with torch.no_grad():
            torch.testing.assert_close(compiled(*_inputs()), model(*_inputs()), rtol=1e-4, atol=1e-4)
    assert not _failures(compiled)


def test_inductor_gets_the_graph_where_nothing_of_it_can_be_lowered(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._inductor, "standalone_compile", _raises)
    compiled = _compiled(model, delegate="inductor")
    with torch.no_grad():
        torch.testing.assert_close(compiled(*_inputs()), model(*_inputs()), rtol=1e-4, atol=1e-4)
    (section,) = lightint_compile.report(compiled).sections
    assert section.untouched and len(section.of_kind(RemarkKind.FAILURE)) == 1


def test_how_to_report_names_versions_and_the_way_to_the_exception() -> None:
    assert torch.__version__ in fallback.how_to_report() and '"strict": True' in fallback.how_to_report()


def test_full_memory_inside_of_inductor_is_no_fault_to_report() -> None:
    def timed() -> None:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.24 GiB")
        except torch.OutOfMemoryError as error:
            raise RuntimeError(f"Failed to run autotuning code block: {error}") from error

    with pytest.raises(RuntimeError) as failed:
        timed()
    wrapped = InductorError(failed.value, None)
    remark = fallback.told("compiling", "Inductor got the graph", wrapped)
    assert "memory was full" in remark.hint and "report it" not in remark.hint and "1.24 GiB" in remark.message
    assert "report it" in fallback.told("compiling", "Inductor got the graph", RuntimeError("another")).hint
