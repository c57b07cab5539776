"""A budget on each world model: calibrated in one rollout, kept in others, found again, and told in the report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from world_sessions import Session

import lightint_compile
from lightint_compile.compiled import CompiledGraph
from lightint_compile.error_budget.calibrating import Calibration
from lightint_compile.error_budget.deviation import deviation_of
from lightint_compile.errors import BudgetError
from lightint_compile.options.error_limits import Deviation

CHUNKS = {"worldplay:tiny": 6, "matrix-game:tiny": 4}
"""Of a rollout in which the camera comes back."""

ACTING = {
    ("worldplay:tiny", "cache"): "step-cache",
    ("matrix-game:tiny", "cache"): "step-cache",
    ("worldplay:tiny", "all"): "adaptive-context + context-reuse + step-cache (age 16)",
    ("matrix-game:tiny", "all"): "adaptive-context + step-cache",
}
"""The last setting of each world and preset. Matrix-Game has no keys and values of context alone that could be kept."""

QUICK = ("matrix-game:tiny", "cache")
"""The world and preset that run by default."""

GENEROUS = 0.9


class Budgeted(Session):
    """A world compiled with a budget. Its first chunk is given, as of a rollout that goes on from a video."""

    def __init__(self, world: str, preset: str, budget: float) -> None:
        self.name, self.preset, self.called = world, preset, False
        super().__init__(world, chunks=CHUNKS[world], depth=2, warm=0, preset=preset, max_relative_error=budget)

    def started(self, *inputs: Any) -> Tensor:
        if inputs[1] is None:
            first: Tensor = self.module(*inputs)
            return first
        self.called = True
        later: Tensor = self.compiled(*inputs)
        return later

    def made(self, seed: int = 0) -> list[Tensor]:
        """The latents of every chunk by the compiled module."""
        return [each.latents for each in self.rollout(self.started, seed=seed)]

    def calibrate(self) -> Calibration:
        return lightint_compile.calibrate(self.compiled, self.made)

    def errors(self, seed: int = 0) -> list[Deviation]:
        """Of each chunk of a fresh rollout, against that of the module as it is."""
        if self.called:
            lightint_compile.reset(self.compiled)
        pairs = zip(self.rollout(self.module, seed=seed), self.made(seed), strict=True)
        return [deviation_of([exact.latents], [got]) for exact, got in pairs]

    def told(self) -> list[str]:
        """The rules of the report's remarks on the budget."""
        sections = lightint_compile.report(self.compiled).sections
        return [each.rule for section in sections for each in section.remarks if each.pass_name == "budget"]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield
    torch._dynamo.reset()


@pytest.fixture(
    scope="module",
    params=[pytest.param(case, id="-".join(case), marks=() if case == QUICK else pytest.mark.slow) for case in ACTING],
)
def calibrated(request: pytest.FixtureRequest) -> tuple[Budgeted, Calibration]:
    session = Budgeted(*request.param, GENEROUS)
    return session, session.calibrate()


def test_one_rollout_measures_every_setting(calibrated: tuple[Budgeted, Calibration]) -> None:
    session, calibration = calibrated
    assert (calibration.rollouts, calibration.whole_rollout) == (1, True), "its history is followed"
    assert calibration.setting == ACTING[session.name, session.preset]
    errors = [row.deviation.relative for row in calibration.table.rows]
    assert errors[0] == 0 and 0 < max(errors) < 0.1


def test_the_error_of_a_fresh_rollout_is_what_was_measured(calibrated: tuple[Budgeted, Calibration]) -> None:
    session, calibration = calibrated
    measured = calibration.table.rows[calibration.chosen - 1].deviation
    errors = session.errors()
    assert max(each.relative for each in errors) == pytest.approx(measured.relative, rel=1e-3)
    assert min(each.psnr for each in errors) == pytest.approx(measured.psnr, abs=0.05)
    made = lightint_compile.decisions(session.compiled)
    assert {each.setting for each in made} == {calibration.setting} and any(each.reused_steps for each in made)
    assert (session.preset == "all") == any(each.saved_frames for each in made)
    assert ("context-reuse" in calibration.setting) == any(each.kept_frames for each in made)
    assert session.told() == ["calibrated"]


def test_other_noise_does_about_as_well(calibrated: tuple[Budgeted, Calibration]) -> None:
    session, calibration = calibrated
    measured = calibration.table.rows[calibration.chosen - 1].deviation.relative
    assert 0 < max(each.relative for each in session.errors(seed=4)) < 2 * measured


@pytest.mark.slow
def test_a_report_of_a_run_has_the_error_of_every_chunk(calibrated: tuple[Budgeted, Calibration]) -> None:
    session, calibration = calibrated
    own = [each.relative for each in session.errors()[1:]]
    lightint_compile.reset(session.compiled)
    rows = lightint_compile.report(session.compiled, run=session.made, errors=True).chunks
    assert [row["error"]["measured"] for row in rows[1:]] == pytest.approx(own, rel=1e-3)
    predicted = calibration.table.rows[calibration.chosen - 1].deviation.relative
    assert {(row["error"]["calibrated"], row["error"]["allowed"]) for row in rows} == {(predicted, GENEROUS)}


@pytest.mark.slow
def test_another_process_keeps_a_smaller_budget_by_the_same_measurements(
    calibrated: tuple[Budgeted, Calibration],
) -> None:
    """A process is as good as new after `torch._dynamo.reset()`: compiled graphs are gone, the file is not."""
    known, calibration = calibrated
    rows = [row.deviation.relative for row in calibration.table.rows]
    first = next(place for place, error in enumerate(rows) if error > 0)
    budget = 0.99 * rows[first] / 0.8
    session = Budgeted(known.name, known.preset, budget)
    assert max(each.relative for each in session.errors()) <= budget
    (graph,) = CompiledGraph.of(session.compiled)
    assert graph.rung == first and session.told() == ["calibrated"]
    made = lightint_compile.decisions(session.compiled)
    assert all(each.refused_steps == each.reused_steps for each in made), "the drift is too large for its bound"
    tight = Budgeted(known.name, known.preset, rows[first] / 100)
    with pytest.raises(BudgetError, match="reachable is max_relative_error="):
        tight.calibrate()
    assert tight.errors() == [Deviation()] * CHUNKS[known.name]
