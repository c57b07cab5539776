"""What a rollout's benchmark says of the driver: host time by kind of call, and how long the device is idle."""

from __future__ import annotations

import time

import pytest
import torch

from lightint_compile.bench.breakdown import BETWEEN, LAUNCH, HostClock, busy
from lightint_compile.bench.rollout import Job, Result, measured
from lightint_compile.bench.rollout_table import print_table
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


@pytest.mark.slow
def test_a_rollout_on_the_cpu() -> None:
    (result,) = measured([JOB], patience=600)
    assert not result.error and len(result.chunks) == 4 and result.idle is None
    assert result.driver["decide"] > 0 and result.driver[LAUNCH] > 0
    assert sum(result.driver.values()) <= 1.5 * result.chunks[1] + 50
