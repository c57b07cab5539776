"""What calibration does with the calls of a rollout, on modules that are a few lines long."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import symbolic_trace

from lightint_compile.compiled import CompiledGraph
from lightint_compile.error_budget.budgeted_graph import BudgetedGraph, start_remark, stored
from lightint_compile.error_budget.calibrated_weights import Weights, weights_of
from lightint_compile.error_budget.calibrating import calibrate
from lightint_compile.error_budget.deviation import deviation_of
from lightint_compile.error_budget.history_feedback import fed_back, replaced
from lightint_compile.error_budget.table import Measured, Table, load, save
from lightint_compile.error_budget.trial_rollout import fingerprint
from lightint_compile.errors import BudgetError, StateError
from lightint_compile.explaining import explain
from lightint_compile.lowering.artifact_store import key_of
from lightint_compile.options import LightintOptions
from lightint_compile.options.error_limits import Budget, Deviation
from lightint_compile.options.ladder import LADDER, Setting, ladder_of
from lightint_compile.passes.pipeline import Pipeline
from lightint_compile.reporting.section import Section

FIVE_PERCENT = Budget(0.05)
NAMES = tuple(Setting(((f"step-{number}", ()),)) for number in range(1, 4))


class World(torch.nn.Module):
    """A chunk that moves on from the one before; setting k moves it by the share `errors[k]` more."""

    def __init__(self, errors=(0.0, 0.01, 0.03, 0.1), budget=FIVE_PERCENT, path=None, noisy=False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.errors, self.noisy, self.calls = errors, noisy, []
        variants = [self._variant(rung) for rung in range(len(errors))]
        ladder = (Setting(), *NAMES[: len(errors) - 1])
        self.graph = BudgetedGraph(variants[0], [self.weight], _Builds(variants), ladder, budget, path, weights=(0,))

    def _variant(self, rung: int) -> CompiledGraph:
        def function(weight: Tensor, noise: Tensor, history: Tensor | None) -> tuple[Tensor]:
            self.calls.append(rung)
            past = 0 if history is None else history[:, :, -4:]
            fresh = torch.randn(noise.shape) if self.noisy else 0
            return ((noise + past + fresh) * weight * (1 + self.errors[rung]),)

        return CompiledGraph(function, Section("world"), [self.weight])

    def forward(self, noise: Tensor, history: Tensor | None) -> Tensor:
        return self.graph(self.weight, noise, history)[0]


class _Builds:
    def __init__(self, variants) -> None:
        self.variants = variants

    def applied(self):
        return frozenset(name for rung in NAMES for name, _ in rung.runs)

    def build(self, rung: int) -> CompiledGraph:
        return self.variants[rung]

    def release(self) -> None:
        self.released = True


def feedback_rollout(world, chunks=4, touch=lambda history: history, seed=0):
    draw, history, made = torch.Generator().manual_seed(seed), None, []
    with torch.no_grad():
        for _ in range(chunks):
            made.append(world(torch.randn(1, 2, 4, 3, 3, generator=draw), None if history is None else touch(history)))
            history = made[-1] if history is None else torch.cat([history, made[-1]], 2)
    return made


def worst(exact, got) -> Deviation:
    found = Deviation()
    for one, other in zip(exact, got, strict=True):
        found = found.worst(deviation_of([one], [other]))
    return found


def test_every_setting_is_given_its_own_history_so_that_one_rollout_tells_the_error_of_many_chunks() -> None:
    world = World()
    calibration = calibrate(world, lambda: feedback_rollout(world))
    assert (calibration.rollouts, calibration.whole_rollout, calibration.chosen) == (1, True, 1)
    exact, got = feedback_rollout(World()), feedback_rollout(world)
    assert worst(exact, got).relative == pytest.approx(calibration.table.rows[0].deviation.relative, rel=1e-5)
    assert 0.01 < calibration.table.rows[0].deviation.relative < 0.04, "more than that of a single call"
    assert set(world.calls[-4:]) == {1}
    assert calibration.beginnings == 1 and "of other rollouts one in 2 may be worse" in str(calibration)


def test_a_rollout_whose_feedback_is_not_seen_is_run_again_at_the_chosen_setting() -> None:
    world = World(errors=(0.0, 0.01, 0.02, 0.1))
    calibration = calibrate(world, lambda: feedback_rollout(world, touch=lambda history: history * 1.25))
    assert calibration.rollouts == 2
    assert calibration.beginnings == calibration.calls, "what begins a rollout is not seen either"
    assert f"one in {calibration.calls + 1} may be worse" in str(calibration)
    assert calibration.chosen == 1 and not calibration.whole_rollout, "2 % a call is more than 4 % after four"
    assert calibration.table.rows[1].deviation.relative > 0.04
    assert calibration.table.choice(FIVE_PERCENT) == calibration.chosen, "as the next process will choose"
    world = World(errors=(0.0, 0.001, 0.002, 0.1))
    calibration = calibrate(world, lambda: feedback_rollout(world, touch=lambda history: history * 1.25))
    assert (calibration.chosen, calibration.rollouts, calibration.whole_rollout) == (2, 2, True)


def test_the_caller_gets_exact_results_while_settings_are_tried() -> None:
    world, seen = World(), []
    calibrate(world, lambda: seen.append(feedback_rollout(world)))
    assert all(torch.equal(one, two) for one, two in zip(seen[0], feedback_rollout(World()), strict=True))


def test_a_setting_over_the_budget_is_not_tried_again_nor_those_behind_it() -> None:
    world = World(errors=(0.0, 0.001, 0.5, 0.6))
    calibrate(world, lambda: feedback_rollout(world))
    assert world.calls.count(2) == 1 and world.calls.count(3) == 0 and world.calls.count(1) == 4


def test_settings_that_come_to_the_same_run_once() -> None:
    world = World(errors=(0.0, 0.01, 0.01, 0.02))
    world.graph.at(2), world.graph.at(3)
    world.graph._variants[world.graph._effect(2)] = world.graph.at(1)
    calibration = calibrate(world, lambda: feedback_rollout(world, 3))
    assert [world.calls.count(rung) for rung in range(4)] == [3, 3, 0, 3]
    assert calibration.table.rows[0].deviation == calibration.table.rows[1].deviation


def test_a_budget_below_the_first_setting_says_what_is_reachable() -> None:
    for budget, said in ((Budget(0.005), "max_relative_error=0.0"), (Budget(None, 60.0), "min_psnr=")):
        world = World(errors=(0.0, 0.01, 0.03), budget=budget)
        with pytest.raises(BudgetError, match=f"reachable is {said}") as caught:
            calibrate(world, lambda world=world: feedback_rollout(world))
        assert world.graph.rung == 0
        reachable = float(str(caught.value).split(f"{said.split('=')[0]}=")[2].split(";")[0])
        enough = Budget(reachable) if budget.min_psnr is None else Budget(None, reachable)
        again = World(errors=(0.0, 0.01, 0.03), budget=enough)
        assert calibrate(again, lambda again=again: feedback_rollout(again)).chosen == 1


def test_settings_that_change_nothing_meet_every_budget() -> None:
    world = World(errors=(0.0, 0.0, 0.0))
    assert calibrate(world, lambda: feedback_rollout(world)).chosen == 2


def test_what_is_not_a_number_fits_no_budget() -> None:
    world = World(errors=(0.0, 0.001, math.nan))
    calibration = calibrate(world, lambda: feedback_rollout(world))
    assert calibration.chosen == 1 and calibration.table.rows[1].deviation == Deviation(math.inf, -math.inf)


def test_settings_are_tried_with_the_random_numbers_of_the_exact_call() -> None:
    world = World(noisy=True)
    calibration = calibrate(world, lambda: feedback_rollout(world))
    assert calibration.table.rows[0].deviation.relative < 0.1


def test_unseeded_noise_is_repeated_in_the_second_rollout_and_a_different_rollout_is_refused() -> None:
    world = World(errors=(0.0, 0.001, 0.1))

    def unseeded():
        for _ in range(2):
            world(torch.randn(1, 2, 4, 3, 3), None)

    assert calibrate(world, unseeded).rollouts == 2
    seeds = iter((1, 2))
    with pytest.raises(StateError, match="not the first again") as caught:
        calibrate(world, lambda: feedback_rollout(world, touch=lambda history: history + 0.1, seed=next(seeds)))
    assert "other inputs" in str(caught.value)
    chunks = iter((3, 2))
    with pytest.raises(StateError, match="fewer calls"):
        calibrate(world, lambda: feedback_rollout(world, next(chunks), touch=lambda history: history + 0.1))


def test_graphs_of_other_modules_run_as_they_are() -> None:
    world, other = World(), World(errors=(0.0, 0.7))
    calibrate(world, lambda: (feedback_rollout(world), feedback_rollout(other)))
    assert set(other.calls) == {0} and other.graph.rung == 0


def test_a_module_that_shares_compiled_code_with_a_calibrated_one_runs_exactly() -> None:
    world, other = World(), World()
    calibrate(world, lambda: feedback_rollout(world))
    shared, own = world.graph, other.graph
    other.graph = shared
    world.calls.clear()
    feedback_rollout(other)
    assert set(world.calls) == {0}
    feedback_rollout(world)
    assert set(world.calls) == {0, 1}
    with pytest.raises(StateError, match="nothing to calibrate"):
        calibrate(world, lambda: feedback_rollout(other))
    assert own.rung == 0


def test_weights_that_were_loaded_in_place_are_others() -> None:
    world = World()
    calibrate(world, lambda: feedback_rollout(world))
    world.calls.clear()
    feedback_rollout(world)
    assert set(world.calls) == {1}
    with torch.no_grad():
        world.weight.mul_(2)
    world.calls.clear()
    feedback_rollout(world)
    assert set(world.calls) == {0}


@pytest.mark.parametrize("change", ["nothing", "another second", "written", "new data", "another first", "a cache"])
def test_weights_are_all_of_them_and_as_they_were(change: str) -> None:
    args: list[Any] = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2)), torch.ones(2)]
    before = Weights.of(args, (0, 1, 2))
    with torch.no_grad():
        if change == "written":
            args[1].add_(1)
        if change == "a cache":
            args[2].add_(1)
    if change == "new data":
        args[1].data = torch.ones(2)
    if change.startswith("another"):
        args[change.endswith("second")] = torch.nn.Parameter(torch.ones(2))
    assert before.are(Weights.of(args, (0, 1, 2))) == (change in ("nothing", "a cache"))


def test_an_exception_in_the_rollout_ends_the_calibration_and_changes_nothing() -> None:
    world = World()

    def failing():
        feedback_rollout(world, 2)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        calibrate(world, failing)
    world.calls.clear()
    feedback_rollout(world, 2)
    assert world.calls == [0, 0]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_module_that_writes_to_its_inputs_is_refused(mode: Callable[[], AbstractContextManager[Any]]) -> None:
    world = World()
    plain = world.graph.at(0).function
    world.graph.at(0).function = lambda weight, noise, history: plain(weight, noise.add_(1), history)
    with mode(), pytest.raises(StateError, match="writes to its inputs"):
        calibrate(world, lambda: feedback_rollout(world))


def test_a_run_that_is_compared_gives_its_own_results_and_each_call_its_distance_from_exact_ones() -> None:
    world = World(errors=(0.0, 0.01, 0.5))
    calibrate(world, lambda: feedback_rollout(world))
    (graph,) = CompiledGraph.of(world)
    with graph.comparing([graph]) as calls:
        got = feedback_rollout(world)
    exact = feedback_rollout(World())
    assert all(torch.equal(one, two) for one, two in zip(got, feedback_rollout(world), strict=True))
    own = [deviation_of([one], [two]).relative for one, two in zip(exact, got, strict=True)]
    assert [deviation.relative for _, deviation in calls] == pytest.approx(own, rel=1e-4) and own[-1] > 1.5 * own[0]
    with graph.comparing([]) as calls:
        feedback_rollout(world, 1)
    assert calls == [], "graphs of other modules are not compared"


def test_a_compared_run_draws_the_random_numbers_of_the_run_alone() -> None:
    world = World(noisy=True)
    calibrate(world, lambda: feedback_rollout(world))
    (graph,) = CompiledGraph.of(world)
    torch.manual_seed(3)
    alone = feedback_rollout(world)
    torch.manual_seed(3)
    with graph.comparing([graph]) as calls:
        got = feedback_rollout(world)
    assert all(torch.equal(one, two) for one, two in zip(alone, got, strict=True))
    assert max(deviation.relative for _, deviation in calls) < 0.1


@pytest.mark.filterwarnings("error")
def test_a_rollout_is_told_by_all_of_its_inputs() -> None:
    one = [torch.ones(2), torch.tensor([1 + 2j, 3 - 1j]), torch.tensor([True, False]), 3, None]
    other = [one[0], torch.tensor([1 + 2j, 3 + 1j]), *one[2:]]
    assert fingerprint(one) == fingerprint(one) and fingerprint(one) != fingerprint(other)


def test_measurements_survive_the_disk_and_are_joined_with_those_that_are_there(tmp_path) -> None:
    path = tmp_path / "calibration" / "key.json"
    rows = (
        Measured("a", Deviation(0.01, 50.0), 4),
        Measured("b", Deviation(0.2, 20.0), 1, complete=False),
        Measured("c", Deviation(math.inf, -math.inf), 2, complete=False),
        Measured("d", Deviation(), 3),
    )
    save(Table(rows), path)
    assert load(path) == Table(rows)
    assert "Infinity" not in path.read_text() and json.loads(path.read_text())["schema"] == 1
    save(Table((Measured("a", Deviation(0.02, 55.0), 4), Measured("b", Deviation(0.1, 30.0), 4), *rows[2:])), path)
    found = load(path)
    assert found.rows[0] == Measured("a", Deviation(0.02, 50.0), 8), "the worse of both"
    assert found.rows[1] == Measured("b", Deviation(0.2, 20.0), 5), "measured to the end in one of them"
    path.write_text("{")
    assert load(path) is None and load(tmp_path / "none") is None


def test_world_finds_its_calibration_again(tmp_path) -> None:
    path = tmp_path / "key.json"
    world = World(path=path)
    chosen = calibrate(world, lambda: feedback_rollout(world)).chosen
    ladder = world.graph.ladder
    assert stored(path, ladder).choice(Budget(0.05)) == chosen == 1
    assert stored(path, ladder[:2]).choice(Budget(0.05)) == 0, "another ladder is another calibration"
    assert "runs at step-1" in start_remark(stored(path, ladder), Budget(0.05)).message
    assert not start_remark(stored(path, ladder), Budget(0.05)).hint
    assert "calibrate again" in start_remark(stored(path, ladder), Budget(0.9)).hint
    assert start_remark(stored(path, ladder), Budget(0.001)).rule == "uncalibrated"


def test_calibrations_belong_to_weights_and_not_to_budgets() -> None:
    graph = symbolic_trace(torch.nn.Linear(4, 4))
    weights = [torch.nn.Parameter(torch.randn(4, 40, generator=torch.Generator().manual_seed(0)))]
    options, other = LightintOptions(), [torch.nn.Parameter(weights[0] * 1.01)]
    key = key_of(graph, options, {}, weights)
    assert key == key_of(graph, options, {}, [torch.nn.Parameter(weights[0].clone())])
    assert len({key, key_of(graph, options, {}, other), key_of(graph, options, {})}) == 3


def test_inputs_are_no_weights() -> None:
    graph = symbolic_trace(torch.nn.Bilinear(4, 4, 2))
    assert weights_of(graph, [torch.nn.Parameter(torch.ones(2)), torch.randn(3)]) == (0,)
    assert weights_of(graph, [torch.randn(3), 7]) == ()


def test_choices_are_monotone_whatever_was_measured() -> None:
    draw = torch.Generator().manual_seed(0)
    budgets = [Budget(10 ** (-power / 8)) for power in range(60)]
    for _ in range(200):
        errors = torch.rand(6, generator=draw) ** 4
        rows = tuple(Measured(str(i), Deviation(float(e), 0.0), 1, bool(e < 0.7)) for i, e in enumerate(errors))
        choices = [Table(rows).choice(budget) for budget in budgets]
        assert choices == sorted(choices, reverse=True)
        for budget, choice in zip(budgets, choices, strict=True):
            assert all(row.deviation.relative <= 0.8 * budget.max_relative_error for row in rows[:choice])


@pytest.mark.parametrize("preset", ["all", "sparse", "context", "cache", "published"])
def test_each_setting_approximates_all_that_the_one_before_does_and_the_last_is_the_preset(preset: str) -> None:
    options = LightintOptions(preset=preset, max_relative_error=0.1)
    ladder = ladder_of(options)
    steps = [{step.name: step for step in _pipeline(rung.applied_to(options)).passes} for rung in ladder]
    left = ("split-linears",) if preset == "published" else ()  # the release has nothing like it
    exact = LightintOptions(preset="exact", without=left)
    assert str(_pipeline(ladder[0].applied_to(options))) == str(_pipeline(exact))
    assert _effective(LightintOptions(preset=preset)) in [_effective(rung.applied_to(options)) for rung in ladder[1:]]
    for less, more in itertools.pairwise(steps):
        assert less.keys() <= more.keys() and less != more
        for name in ("density", "context_density"):
            assert not _values(less, name) or _values(more, name) <= _values(less, name)
        assert _values(less, "drift") <= _values(more, "drift") and _values(less, "age") <= _values(more, "age")


def _effective(options: LightintOptions) -> list[object]:
    return [step for step in _pipeline(options).passes if getattr(step, "age", None) != 0]


def _values(steps, option: str):
    return [getattr(step, option) for step in steps.values() if hasattr(step, option)]


def _pipeline(options: LightintOptions) -> Pipeline:
    from lightint_compile.options.pipelines import pipeline_of

    return pipeline_of(options)


def test_a_dry_run_with_a_budget_is_exact_and_says_why() -> None:
    report = explain(torch.nn.Linear(4, 4), torch.randn(2, 4), options={"max_relative_error": 0.1})
    (remark,) = [each for each in report.sections[0].remarks if each.pass_name == "budget"]
    assert remark.rule == "uncalibrated" and "sparse-attention" not in report.sections[0].pipeline


def test_a_pipeline_written_out_is_taken_whole_or_not_at_all() -> None:
    ladder = ladder_of(LightintOptions(passes="sparse-attention{density=0.5},outline-regions", max_relative_error=0.1))
    assert [str(rung) for rung in ladder] == ["exact", "sparse-attention"]
    assert all("sparse-attention" in row for row in LADDER[1:])


def test_the_two_measures_are_of_one_difference() -> None:
    exact = torch.tensor([0.0, 1.0, 2.0, 4.0], dtype=torch.float64)
    found = deviation_of([exact], [exact + 0.1])
    assert found.relative == pytest.approx(0.1 * 2 / math.sqrt(21))
    assert found.psnr == pytest.approx(20 * math.log10(4 / 0.1))
    assert deviation_of([exact, exact], [exact, exact + 0.1]) == found, "the worst of several results"
    assert deviation_of([exact], [exact]) == Deviation(0.0, math.inf)
    assert deviation_of([0 * exact], [exact]).relative == math.inf
    assert deviation_of([exact.half()], [exact.half()]) == Deviation()


def test_a_history_is_recognised_by_its_values_and_keeps_its_layout() -> None:
    results = [[torch.randn(1, 2, 4, 3, 3)] for _ in range(3)]
    history = torch.cat([each[0] for each in results], 2)
    given, weight = torch.ones(1, 2, 2, 3, 3), torch.nn.Parameter(history)
    longer = torch.cat([given, history], 2)
    args = [torch.randn(1, 2, 4, 3, 3), history, history[:, :, 4:], weight, history + 1e-3, longer, 7, None]
    found = fed_back(args, results)
    assert [(fed.argument, fed.calls, fed.axis) for fed in found] == [(1, 3, 2), (2, 2, 2), (5, 3, 2)]
    own = replaced(args, found, [[torch.zeros(1, 2, 4, 3, 3)] for _ in range(3)])
    assert torch.equal(own[1], torch.zeros_like(history)) and own[1].stride() == history.stride()
    assert own[0] is args[0] and own[4] is args[4]
    assert torch.equal(own[5][:, :, :2], given) and not own[5][:, :, 2:].any(), "what was given stays"
    assert fed_back(args, []) == []


def test_the_history_of_a_second_rollout_is_recognised_behind_what_it_was_given() -> None:
    """Rollouts run one after another: the second one's history ends with its own results, the first one's not."""
    earlier, later = ([[torch.randn(1, 2, 4, 3, 3)] for _ in range(2)] for _ in range(2))
    given = torch.ones(1, 2, 4, 3, 3)  # as many frames as a result of the first rollout has
    history = torch.cat([given, *(each[0] for each in later)], 2)
    (found,) = fed_back([history], earlier + later)
    assert (found.calls, found.axis, found.is_all) == (2, 2, False), "what is in front of it may be results as well"
    (own,) = replaced([history], [found], [[torch.zeros(1, 2, 4, 3, 3)] for _ in range(4)])
    assert torch.equal(own[:, :, :4], given) and not own[:, :, 4:].any()
    (alone,) = fed_back([history], later)
    assert alone.calls == 2 and alone.is_all
    assert fed_back([given], earlier + later) == [], "the first call of a rollout is fed nothing"
