"""What a rollout's benchmark says of the driver: host time by kind of call, and how long the device is idle."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightint_compile.bench.breakdown import BETWEEN, LAUNCH, HostClock, Stopwatch, both, busy
from lightint_compile.bench.rollout import Job, Result, measured, variants_of
from lightint_compile.bench.rollout_job import jobs_of
from lightint_compile.bench.rollout_table import print_result, print_table
from lightint_compile.lowering.driver import Driver
from lightint_compile.lowering.region import Leaf, Variant
from lightint_compile.passes.ir.decision_points import PlanPoint
from lightint_compile.passes.ir.decision_policy import Policy

JOB = Job("all", 1, "worldplay:tiny", "w-15", 1, "cpu")
HOST = {"decide": 2.0, "guard": 1.0, "keep": 0.0, "recall": 0.0, LAUNCH: 20.0, BETWEEN: 1.0}


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([], 0),
        ([(0, 2), (5, 6)], 3),
        ([(0, 4), (1, 2), (3, 6)], 6),
        ([(3, 6), (0, 4), (6, 7), (8, 8)], 7),
    ],
)
def test_kernels_that_overlap_count_once(intervals, expected) -> None:
    assert busy(intervals) == expected


SPANS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)).map(lambda each: (each[0], sum(each))), max_size=6)


@given(SPANS, SPANS)
def test_time_in_both_counts_once(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    covered = [{moment for start, end in spans for moment in range(start, end)} for spans in (one, other)]
    assert both(one, other) == len(covered[0] & covered[1])


def test_idle_is_what_kernels_do_not_fill_and_deciding_is_measured_against_its_own_chunks() -> None:
    result = Result(JOB, 0.0, chunks=(900.0, 100.0, 200.0, 40.0, 50.0), driver=HOST, busy=48.0)
    assert result.idle == pytest.approx(0.04) and result.deciding == pytest.approx(3 / 150)
    assert Result(JOB, 0.0, chunks=(1.0, 2.0)).idle is None and Result(JOB, 0.0).deciding is None
    assert Result(JOB, 0.0, chunks=(50.0,), busy=51.0).idle == 0, "a profiler may slow kernels down"


def test_both_are_printed(capsys) -> None:
    print_table([Result(JOB, 0.0, chunks=(9.0, 100.0, 200.0, 40.0, 50.0), driver=HOST, busy=48.0)], 54)
    said = " ".join(capsys.readouterr().out.split())
    assert "decide 2.00, guard 1.00" in said and "decide and guard are 2.00 % of a chunk" in said
    assert "device idle for 4.0 % of the last chunk" in said


def waiting(milliseconds: float) -> Variant:
    def function(*_: object) -> tuple[torch.Tensor, ...]:
        time.sleep(milliseconds / 1e3)
        return (torch.zeros(1),)

    return Variant(function)


def test_a_driver_is_timed_by_kind_of_call_and_left_as_it_was() -> None:
    source = "def forward(self, cameras):\n    plan = self.plan(cameras)\n    return self.block_0(plan[1])\n"
    leaf = Leaf("block_0", lambda: None, None, [waiting(5)])  # type: ignore[arg-type, return-value]
    driver = Driver(source, {"block_0": leaf}, points={"plan": PlanPoint(Policy())})
    before, clock = dict(vars(driver._self)), HostClock()
    with clock.on_driver(driver):
        driver(torch.eye(4, dtype=torch.float64).repeat(8, 1, 1))
    assert vars(driver._self) == before
    found = clock.read(1.0, 2)
    assert found[LAUNCH] >= 2.5 and 0 < found["decide"] < 400 and found["guard"] == found["keep"] == 0
    assert sum(found.values()) == pytest.approx(500)


def test_a_row_may_be_of_another_size_of_the_family() -> None:
    (rounded,) = jobs_of("all:drift=1e9@tiny-int8", (2,), "matrix-game:tiny", "w-14", 1, "cpu")
    assert rounded.model == "matrix-game:tiny-int8" and rounded.options == {"preset": "all", "drift": 1e9}
    (eager,) = jobs_of("eager@tiny", (2,), "matrix-game:5b-720p", "w-14", 1, "cpu")
    assert eager.model == "matrix-game:tiny" and eager.options is None
    assert variants_of("matrix-game:5b-720p")[-1] == "all@5b-720p-int8"
    assert variants_of("worldplay:tiny")[-1] == "all:drift=1e9"


def test_rows_say_how_many_video_frames_come_in_a_second(capsys) -> None:
    job = Job("eager", 2, "matrix-game:5b-720p", "w-24", 1, "cpu")
    eager = Result(job, 0.0, chunks=(4000.0, 6000.0, 6000.0), stages={"denoise": 9000.0})
    rewritten = Result(dataclasses.replace(job, variant="exact"), 0.0, chunks=(2500.0, 2500.0, 5000.0))
    print_result(eager)
    assert capsys.readouterr().out == "eager depth 2: 16.00 s, 8.56 video frames/s; chunks ms 4000 6000 6000\n"
    print_table([eager, rewritten], 2)
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    said = [[cell.strip() for cell in row[1:6]] for row in rows]
    assert said == [["eager", "2: 16.00", "16.0", "1.00x", "8.6"], ["exact", "2: 10.00", "10.0", "1.60x", "13.7"]]


def test_stages_are_timed_on_a_cpu_too() -> None:
    watch = Stopwatch(torch.device("cpu"))
    assert watch.run("denoise", torch.add, torch.ones(2), torch.ones(2)).tolist() == [2.0, 2.0]
    watch.region({"block": "denoise"}, "block", time.sleep, 0.002)
    watch.region({}, "glue", time.sleep, 0.0)
    assert watch.read().keys() == {"denoise", "rest"} and watch.read()["denoise"] >= 2


@pytest.mark.slow
def test_rows_are_written_as_they_come(tmp_path: Path) -> None:
    job = Job("eager", 1, "matrix-game:tiny", "w+left-14,right-20", 1, "cpu")
    rows = measured([job, dataclasses.replace(job, depth=2)], tmp_path / "rows.json", patience=300, at_once=1)
    first = next(rows)
    assert not first.error and len(first.chunks) == 3 and first.stages["denoise"] > 0
    (written,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert tuple(written["chunks"]) == first.chunks and written["job"]["depth"] == 1
    assert next(rows).job.depth == 2 and len(json.loads((tmp_path / "rows.json").read_text())["rows"]) == 2


@pytest.mark.slow
def test_a_rollout_on_the_cpu() -> None:
    (result,) = measured([JOB], patience=600)
    assert not result.error and len(result.chunks) == 4 and result.idle is None
    assert result.driver["decide"] > 0 and result.driver[LAUNCH] > 0
    assert sum(result.driver.values()) <= 1.5 * result.chunks[1] + 50
