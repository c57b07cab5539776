"""Error budgets judged on walks that no calibration saw: the whole way once, and what its rows say."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from lightint_compile.cli.app import app
from lightint_compile.error_budget.table import Measured, Table
from lightint_compile.errors import InputError, LightintError, OptionError
from lightint_compile.evaluating import Plan, Sweep, budgets, judge_budgets, print_budgets
from lightint_compile.evaluating.asked import true_world
from lightint_compile.evaluating.budgets import SEEN, _judged, edges
from lightint_compile.evaluating.results import Result
from lightint_compile.evaluating.true_world import TrueWorld
from lightint_compile.options.error_limits import MARGIN, Budget, Deviation

pytest.importorskip("torchmetrics")
pytestmark = pytest.mark.filterwarnings("ignore:.*no trained weights")


def plan(**changes: Any) -> Plan:
    settings: dict[str, Any] = {"families": ["protocol"], "scenes": 2, "latents": 16}
    return Plan(model="maze:tiny", delegate="eager", **{**settings, **changes})


def judged(sweep: Sweep, file: Path | None = None) -> dict[str, Any]:
    return judge_budgets(plan(), sweep, file, Console(file=io.StringIO(), width=160))


def shallow(*asked: Any) -> TrueWorld:
    """The world with a model of one block and three steps."""
    world: Any = true_world(*asked)
    model = world.with_steps(3).at_depth(1)
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, refiner_depth=1))
    made: TrueWorld = dataclasses.replace(world, model=model)
    return made


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file, cache = tmp_path_factory.mktemp("budgets") / "found.json", os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budgets, "true_world", shallow)
        made = judged(Sweep("published", budgets=(1e-6, 0.5)), file)
    assert json.loads(file.read_text()) == json.loads(json.dumps(made))
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") == cache
    return made


def test_a_small_budget_is_exact_and_a_large_one_takes_the_preset(found: dict[str, Any]) -> None:
    small, edge, large = found["budgets"]
    assert (small["budget"], small["setting"], small["rung"], small["over"]) == (1e-6, "exact", 0, 0)
    assert large["budget"] == 0.5 and edge["rung"] == large["rung"] == 1
    assert large["chunks"] == 6 and large["over"] == 0 and 0 < large["error_worst"] < 0.5
    assert edge["error_worst"] == large["error_worst"], "one rollout serves all budgets of a setting"


def test_the_smallest_budget_of_a_setting_is_the_calibrated_error_with_its_margin(found: dict[str, Any]) -> None:
    (_, _, setting), (_, edge, _) = found["ladder"], found["budgets"]
    assert setting["calibrated_worst"] / MARGIN <= edge["budget"] < 1.1 * setting["calibrated_worst"] / MARGIN
    assert (edge["over"] > 0) == (edge["error_worst"] > edge["budget"])


def test_a_setting_has_its_loss_to_the_truth_and_its_speed(found: dict[str, Any]) -> None:
    eager, exact, setting = found["ladder"]
    assert (eager["setting"], eager["psnr_truth_loss"], eager["speed"]) == ("eager", 0.0, 1.0)
    assert (exact["setting"], exact["error_worst"], exact["chunks"]) == ("exact", 0.0, 6)
    assert 0 < setting["error"] <= setting["error_worst"] and setting["chunks"] == 6
    assert abs(setting["psnr_truth_loss"]) > 0 and setting["psnr_truth_revisit_loss"] is not None
    assert 0 < setting["steps_per_chunk"] <= 4 and setting["milliseconds_per_chunk"] > 0


def test_both_tables_are_printed(found: dict[str, Any]) -> None:
    console = Console(file=io.StringIO(), width=160)
    print_budgets(found, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(row["setting"] in said for row in found["ladder"])
    assert "by walks calibrated on" in said and "with one over" in said
    assert "1e-06" in said and "over: chunks whose error is above the budget" in said


def result(variant: str, *errors: float) -> Result:
    same: dict[str, Any] = dict.fromkeys(("psnr_truth", "ssim_truth", "psnr_eager", "ssim_eager"), (20.0,) * 2)
    return Result(
        variant, "novel", 0, 0, 1, **same, revisited=(False,) * 2, relative_errors=errors, milliseconds=(5.0,) * 2
    )


def test_chunks_above_the_budget_are_counted() -> None:
    table = Table((Measured("some", Deviation(0.08), 4), Measured("more", Deviation(0.3), 4)))
    results = [result("eager", 0.01, 0.02), result("exact", 0.0, 0.0), result("a", 0.05, 0.12), result("b", 0.2, 0.3)]
    found = _judged(results, table, {0.01: 0, 0.1: 1, 0.5: 2}, {0: "exact", 1: "a", 2: "b"})
    rows, (eager, exact, *_) = found["budgets"], found["ladder"]
    assert (eager["error_worst"], exact["error_worst"]) == (0.02, 0.0), "a budget is a distance to exact results"
    assert [(row["over"], row["share_over"], row["error_worst"]) for row in rows] == [
        (0, 0.0, 0.0),
        (1, 0.5, 0.12),
        (0, 0.0, 0.3),
    ]
    assert [(row["walks"], row["walks_over"]) for row in rows] == [(1, 0), (1, 1), (1, 0)]


def test_edges_are_of_settings_that_a_budget_can_choose() -> None:
    rows = (Deviation(0.01), Deviation(0.005), Deviation(0.2), Deviation(0.9))
    table = Table(tuple(Measured(str(number), each, 4) for number, each in enumerate(rows)))
    assert edges(table) == [0.013, 0.25], "the second does more at no more error; the last fits no budget"
    assert [table.choice(Budget(edge)) for edge in edges(table)] == [2, 3]
    assert [table.choice(Budget(0.99 * edge)) for edge in (0.0125, 0.25)] == [0, 2]
    given_up = Table((Measured("first", Deviation(0.01), 4), Measured("second", Deviation(0.3), 2, complete=False)))
    assert edges(given_up) == [0.013]


@pytest.mark.parametrize(
    ("sweep", "kind", "said"),
    [
        (Sweep(budgets=()), OptionError, "these are no error budgets"),
        (Sweep(budgets=(0.1, 0.0)), OptionError, "these are no error budgets"),
        (Sweep(budgets=(float("nan"),)), OptionError, "these are no error budgets"),
        (Sweep(calibrated=SEEN + 1), InputError, "there are not as many scenes"),
        (Sweep(budgets=(0.1, 2.0)), OptionError, "these are no error budgets"),
        (Sweep("al"), OptionError, "'al'"),
        (Sweep("exact"), OptionError, "exact has no settings to choose from"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_anything_runs(
    sweep: Sweep, kind: type[LightintError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        judged(sweep)


def test_the_command_hands_its_options_over() -> None:
    refused = CliRunner().invoke(app, ["bench", "budgets", "--model", "maze:tiny", "--budget", "0.1", "--budget", "2"])
    assert isinstance(refused.exception, OptionError) and "given are 0.1, 2" in str(refused.exception)
    refused = CliRunner().invoke(app, ["bench", "budgets", "--model", "maze:tiny", "--preset", "exact"])
    assert "exact has no settings" in str(refused.exception)
