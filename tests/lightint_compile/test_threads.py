"""Threads that compile, compile later sizes, explain and list graphs at the same time."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.convert_frame import compile_lock
from torch._inductor.async_compile import AsyncCompile
from torch._subclasses import FakeTensorMode
from torch.fx import _symbolic_trace

import lightint_compile
from lightint_compile import capture
from lightint_compile.compiled import CompiledGraph
from lightint_compile.lowering.deferred_wait import one_wait_for_all_kernels
from lightint_compile.lowering.region import Leaf, Variant
from lightint_compile.lowering.region_sizes import FreshInputs
from lightint_compile.reporting.section import Section

# torch 2.11 built for CUDA, where no device is, frees a device guard with the thread that first traces, and later
# traces crash (pytorch#178950): that thread is the one that lives as long as the process.
with FakeTensorMode():
    torch.empty(1)

FLAG_OF_ALL_THREADS = hasattr(_symbolic_trace, "_is_fx_tracing_flag")
"""Whether torch refuses a call of what any backend compiled while another thread traces, as 2.11 does."""


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.a(x.repeat_interleave(16, 0)))


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What torch keeps of the line that it traces is put back: threads that trace at once leave it behind."""
    for name in ("current_meta", "should_preserve_node_meta"):
        monkeypatch.setattr(torch.fx.traceback, name, getattr(torch.fx.traceback, name))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _at_once(*work: Callable[[], object]) -> None:
    """Run all of it in threads that start together; the first failure is raised."""
    failures: list[BaseException] = []
    start = threading.Barrier(len(work))

    def run(each: Callable[[], object]) -> None:
        try:
            start.wait(60)
            each()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(each,)) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    if failures:
        raise failures[0]


def test_waiting_is_put_off_for_the_thread_that_lowers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    monkeypatch.setattr(AsyncCompile, "_wait_futures", lambda self, scope: waited.append(scope["name"]))
    pool, before = AsyncCompile(), AsyncCompile._wait_futures
    with one_wait_for_all_kernels():
        pool._wait_futures({"name": "mine"})
        _at_once(lambda: pool._wait_futures({"name": "another's"}))
        assert waited == ["another's"]
    assert waited == ["another's", "mine"]
    assert AsyncCompile._wait_futures is before


def test_overlapping_waits_leave_torch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []
    monkeypatch.setattr(AsyncCompile, "_wait_futures", lambda self, scope: waited.append(scope["name"]))
    pool, before, meet = AsyncCompile(), AsyncCompile._wait_futures, threading.Barrier(4)

    def lower(number: int) -> None:
        for _ in range(20):
            with one_wait_for_all_kernels():
                meet.wait(60)
                pool._wait_futures({"name": number})

    _at_once(*(lambda number=number: lower(number) for number in range(4)))  # type: ignore[misc]
    assert AsyncCompile._wait_futures is before
    assert sorted(waited) == sorted(list(range(4)) * 20)


def test_a_later_size_is_compiled_once_whoever_asks() -> None:
    graph = torch.fx.symbolic_trace(lambda x: (x + 1,))
    for node in graph.graph.nodes:
        node.meta["val"] = torch.empty(2)
    compiled: list[int] = []

    def compiler(module: torch.fx.GraphModule, inputs: FreshInputs) -> Variant:
        compiled.append(1)
        return Variant(module)

    leaf = Leaf("region", lambda: graph, compiler)
    results: list[Any] = []
    _at_once(*[lambda: results.append(leaf(torch.ones(2))[0])] * 6)
    assert len(results) == 6 and all(torch.equal(result, torch.full((2,), 2.0)) for result in results)
    assert len(compiled) == leaf.compilations == 1


def test_graphs_are_listed_while_others_are_made_and_forgotten() -> None:
    def make() -> None:
        for _ in range(300):
            CompiledGraph(lambda: None, Section("graph"), ())

    def read() -> None:
        for _ in range(300):
            CompiledGraph._every()

    _at_once(make, read, make, read, CompiledGraph.forget_all)


def test_explain_beside_a_compilation_changes_neither() -> None:
    torch.manual_seed(0)
    models = [Model().eval().requires_grad_(False) for _ in range(2)]
    x = torch.randn(3, 8)
    reports: list[Any] = []

    def compiled_and_run(model: nn.Module) -> Callable[[], None]:
        # torch itself cannot look a backend up for the first time in two threads at once
        compiled = torch.compile(model, backend="lightint", options={"preset": "exact", "delegate": "eager"})
        return lambda: run(model, compiled)

    def run(model: nn.Module, compiled: Any) -> None:
        with torch.no_grad():
            for rows in (2, 3, 5):
                with compile_lock if FLAG_OF_ALL_THREADS else contextlib.nullcontext():
                    result = compiled(x[:rows])
                torch.testing.assert_close(result, model(x[:rows]))

    def explain() -> None:
        for _ in range(3):
            reports.append(lightint_compile.explain(models[0], x, options={"preset": "exact"}))

    _at_once(compiled_and_run(models[0]), explain, compiled_and_run(models[1]))
    assert len(reports) == 3 and all(len(report.sections) == 1 for report in reports)


def test_traces_in_several_threads_leave_modules_as_they_were() -> None:
    before = nn.Module.__call__, nn.Module.__getattr__
    exported = [torch.export.export(Model().eval(), (torch.randn(3, 8),)) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def trace(number: int) -> None:
        for _ in range(5):
            assert len(list(capture.from_exported(exported[number]).calls())) > 1

    try:
        _at_once(*(lambda number=number: trace(number) for number in range(4)))  # type: ignore[misc]
        assert (nn.Module.__call__, nn.Module.__getattr__) == before
    finally:
        sys.setswitchinterval(interval)
        nn.Module.__call__, nn.Module.__getattr__ = before  # type: ignore[method-assign]
