"""A timed run: milliseconds by stage for every call, marks in a profiler's trace, rows for the report."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_world import ToyWorld, there_and_back, toy_rollout

import lightint_compile
from lightint_compile.errors import InputError, StateError
from lightint_compile.lowering.run_timing import REST, RunTimer, stage_of
from lightint_compile.reporting import Report
from lightint_compile.runtime.decision import Decision
from lightint_compile.runtime.run_rows import as_rows


def blocks() -> torch.nn.Module:
    block = [torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.Linear(8, 8), torch.nn.GELU()) for _ in range(3)]
    return torch.nn.Sequential(*block).eval()


def test_a_run_is_timed_and_traced_with_the_names_of_the_driver(tmp_path: Path) -> None:
    options = {"passes": "outline-regions", "require": ["outline-regions"], "delegate": "eager"}
    compiled = torch.compile(blocks(), backend="lightint", options=options)
    inputs = torch.randn(2, 8)
    with torch.no_grad():
        expected = compiled(inputs)
        (graph,) = lightint_compile.compiled.CompiledGraph.of(compiled)
        report = lightint_compile.report(compiled, run=lambda: (compiled(inputs), compiled(inputs)), trace=True)
        assert torch.equal(compiled(inputs), expected)
    assert [row["chunk"] for row in report.chunks] == [0, 1]
    assert all(set(row["milliseconds"]) == {REST} and row["milliseconds"][REST] > 0 for row in report.chunks)
    written = json.loads(report.to_perfetto(tmp_path / "trace.json").read_text())
    marks = [event["name"] for event in written["traceEvents"] if event["name"].startswith("lightint: ")]
    assert marks.count("lightint: call") == 2
    assert graph.driver is not None and set(graph.driver.leaves) <= {name.split("(")[-1].rstrip(")") for name in marks}
    assert written["lightint"] == report.to_dict()


def test_a_graph_that_is_run_as_it_is_is_timed_as_a_whole() -> None:
    compiled = torch.compile(
        torch.nn.Linear(4, 4), backend="lightint", options={"preset": "exact", "delegate": "eager"}
    )
    inputs = torch.randn(2, 4)
    with torch.no_grad():
        compiled(inputs)
        (row,) = lightint_compile.report(compiled, run=lambda: compiled(inputs)).chunks
    assert row["chunk"] == 0 and set(row["milliseconds"]) == {REST}


@pytest.mark.parametrize("model", [blocks(), torch.nn.Linear(8, 8)], ids=["rewritten", "as it is"])
def test_of_two_runs_at_once_one_is_measured_and_nothing_of_it_stays(model: torch.nn.Module) -> None:
    torch._dynamo.reset()
    options: dict[str, Any] = {"passes": "outline-regions", "require": ["outline-regions"], "delegate": "eager"}
    if isinstance(model, torch.nn.Linear):
        options = {"preset": "exact", "delegate": "eager"}
    compiled, inputs = torch.compile(model, backend="lightint", options=options), torch.randn(2, 8)
    entered, leave = threading.Event(), threading.Event()
    reports: list[Report] = []

    def call() -> None:
        with torch.no_grad():
            compiled(inputs)

    def first() -> None:
        entered.set()
        leave.wait(10)
        call()

    call()
    thread = threading.Thread(target=lambda: reports.append(lightint_compile.report(compiled, run=first)))
    thread.start()
    entered.wait(10)
    with pytest.raises(StateError, match="measured already"):
        lightint_compile.report(compiled, run=call)
    leave.set()
    thread.join()
    assert len(reports[0].chunks) == 1
    (graph,) = lightint_compile.compiled.CompiledGraph.of(compiled)
    assert not graph._calls and (graph.driver is None or not graph.driver._calls)
    assert len(lightint_compile.report(compiled, run=lambda: (call(), call())).chunks) == 2
    with pytest.raises(StateError, match="measured already"):
        lightint_compile.report(compiled, run=lambda: lightint_compile.report(compiled, run=call))
    call()


def test_a_run_that_fails_leaves_nothing_behind() -> None:
    torch._dynamo.reset()
    compiled, inputs = torch.compile(blocks(), backend="lightint", options={"delegate": "eager"}), torch.randn(2, 8)
    with torch.no_grad():
        compiled(inputs)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                lightint_compile.report(compiled, run=lambda: 1 // 0, trace=True)
        assert len(lightint_compile.report(compiled, run=lambda: compiled(inputs), trace=True).chunks) == 1


def test_calls_of_several_threads_have_their_own_regions() -> None:
    timer, order = RunTimer(), threading.Barrier(2)

    def call(stage: str) -> None:
        timer.whole(lambda: (order.wait(10), timer._region(f"{stage}_block", lambda: order.wait(10)), order.wait(10)))

    threads = [threading.Thread(target=call, args=(stage,)) for stage in ("step_0", "step_1")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted([stage for stage, _ in each.spans] for each in timer.calls) == [["step 0"], ["step 1"]]


def test_without_a_traced_run_there_is_no_timeline(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"(?s)no run was traced.*trace=True"):
        Report(()).to_perfetto(tmp_path / "trace.json")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_a_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        Report(()).to_html(tmp_path / "missing" / "report.html")
    with pytest.raises(InputError, match="cannot be written"):
        Report(()).to_html(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "stage"),
    [("step_2_block_7", "step 2"), ("prefill_block_0", "prefill"), ("reuse_step_1", "step 1"), ("glue_0", REST)],
)
def test_stages_are_those_of_the_names(call: str, stage: str) -> None:
    assert stage_of(call) == stage


def test_calls_of_one_chunk_add_up_and_errors_go_by_the_setting() -> None:
    decisions = [Decision(chunk=0, context_frames=()), Decision(chunk=1, context_frames=(0, 1), setting="fast")]
    times = [(None, {"rest": 1.0}), (1, {"step 0": 2.0}), (1, {"step 0": 3.0, "step 1": 1.0})]
    first, second = as_rows(decisions, 4, 1, times, {"fast": {"allowed": 0.05, "calibrated": 0.02}})
    assert first["frames"] == [0, 5] and first["milliseconds"] == {"rest": 1.0} and "error" not in first
    assert second["frames"] == [5, 9] and second["milliseconds"] == {"step 0": 5.0, "step 1": 1.0}
    assert second["error"] == {"allowed": 0.05, "calibrated": 0.02}


@pytest.mark.slow
def test_a_rollout_is_reported_chunk_by_chunk_with_its_path() -> None:
    compiled = torch.compile(ToyWorld().eval(), backend="lightint", options={"preset": "all", "delegate": "eager"})
    cameras = there_and_back(24)
    toy_rollout(compiled, cameras)
    report = lightint_compile.report(compiled, run=lambda: toy_rollout(compiled, cameras))
    assert [row["frames"] for row in report.chunks] == [[4 * k, 4 * k + 4] for k in range(6)]
    assert all({"decide", "step 0", "step 3"} <= set(row["milliseconds"]) for row in report.chunks[1:])
    assert len(report.path["x"]) == 24 and Report.from_dict(json.loads(json.dumps(report.to_dict()))).chunks
