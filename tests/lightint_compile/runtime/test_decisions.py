"""Decisions from end to end: one compile for a rollout, and state that belongs to one driver and one rollout."""

import copy
import json
import logging

import pytest
import torch
from torch._dynamo.utils import counters
from toy_world import ToyWorld, there_and_back, toy_rollout, walk
from typer.testing import CliRunner

import lightint_compile
from lightint_compile.cli.app import app
from lightint_compile.compiled import CompiledGraph
from lightint_compile.errors import InputError, OptionError, StateError
from lightint_compile.lowering.driver import Driver
from lightint_compile.options import LightintOptions
from lightint_compile.options.pipelines import pipeline_of
from lightint_compile.passes.ir.decision_points import PlanPoint, StepPoint, point_from
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.runtime.decision import Decision
from lightint_compile.runtime.decisions import Decisions
from lightint_compile.runtime.planner import SLOTS, Planner, plan
from lightint_compile.runtime.rules import AdaptiveRules, PublishedRules

PATH = there_and_back(40)


@pytest.fixture(scope="module")
def compiled():
    torch._dynamo.reset()
    torch.manual_seed(0)
    options = {"preset": "published", "delegate": "eager", "strict": True}
    module = torch.compile(ToyWorld().eval(), backend="lightint", options=options)
    counters.clear()
    toy_rollout(module, PATH[:, :16])
    return module


@pytest.fixture
def driver(compiled) -> Driver:
    lightint_compile.reset(compiled)
    return CompiledGraph.of(compiled)[-1].driver


def without_drift(decisions):
    return [decision.to_dict() for decision in decisions]


def test_one_compile_serves_every_context_length_and_every_choice_of_steps(compiled, driver) -> None:
    before = driver.compilations
    toy_rollout(compiled, PATH)
    made = lightint_compile.decisions(compiled)
    assert {len(decision.context_frames) for decision in made} == {0, 4, 8, 12}
    assert {decision.reused_steps for decision in made} == {(), (1, 2)}
    assert counters["stats"]["unique_graphs"] == 2, "one graph without history, one with"
    assert driver.compilations == before


def test_decisions_are_those_of_the_rules_along_the_path(compiled, driver) -> None:
    toy_rollout(compiled, PATH)
    made = lightint_compile.decisions(compiled)
    assert [decision.chunk for decision in made] == list(range(10))
    assert without_drift(made[1:]) == without_drift(plan(PATH[0], PublishedRules())[1:])


def test_every_decision_is_logged(compiled, driver, caplog) -> None:
    with caplog.at_level(logging.INFO, logger="lightint_compile.runtime"):
        toy_rollout(compiled, PATH[:, :16])
    lines = [record.getMessage() for record in caplog.records if record.name == "lightint_compile.runtime"]
    assert [line.split(":")[0] for line in lines] == ["chunk 1", "chunk 2", "chunk 3"]


def test_interleaved_rollouts_give_what_each_gives_alone(compiled, driver) -> None:
    paths = (PATH, walk(40, turn=-8.0, step=0.0))
    alone = [toy_rollout(compiled, path, seed=seed) for seed, path in enumerate(paths)]
    decided = [without_drift(plan(path[0], PublishedRules())[1:]) for path in paths]
    lightint_compile.reset(compiled)
    generators = [_chunk_by_chunk(compiled, path, seed) for seed, path in enumerate(paths)]
    for chunk in range(10):
        for number, generator in enumerate(generators):
            torch.testing.assert_close(next(generator), alone[number][chunk])
            if chunk:
                assert without_drift(driver.decisions.made) == decided[number][:chunk]


def _chunk_by_chunk(model, cameras, seed):
    noise = torch.randn(1, 4, 40, 4, 6, generator=torch.Generator().manual_seed(seed))
    history = None
    for first in range(0, 40, 4):
        with torch.no_grad():
            latents = model(noise[:, :, first : first + 4].contiguous(), history, cameras[:, : first + 4].contiguous())
        yield latents
        history = latents.clone() if history is None else torch.cat([history, latents], 2)


def test_a_copied_driver_shares_kernels_and_no_decision(compiled, driver) -> None:
    toy_rollout(compiled, PATH[:, :16])
    other = copy.deepcopy(driver)
    assert other.leaves.keys() == driver.leaves.keys() and other.branches == driver.branches
    assert len(driver.decisions.made) == 3 and other.decisions.made == []


def test_reset_forgets_the_rollout(compiled, driver) -> None:
    toy_rollout(compiled, PATH[:, :16])
    lightint_compile.reset(compiled)
    assert lightint_compile.decisions(compiled) == []


def test_an_exception_in_mid_chunk_is_as_if_the_chunk_had_not_been_tried(compiled, driver) -> None:
    expected = toy_rollout(compiled, PATH)
    decided = lightint_compile.decisions(compiled)
    lightint_compile.reset(compiled)
    plain, calls = driver._self.step_2_reuse, []

    def failing(*operands):
        calls.append(len(calls))
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return plain(*operands)

    driver._self.step_2_reuse = failing
    try:
        got = toy_rollout(_Retrying(compiled), PATH)
    finally:
        driver._self.step_2_reuse = plain
    assert len(calls) > 2
    assert lightint_compile.decisions(compiled) == decided
    torch.testing.assert_close(got, expected)


class _Retrying:
    def __init__(self, module) -> None:
        self.module = module

    def __call__(self, *inputs):
        try:
            return self.module(*inputs)
        except RuntimeError:
            return self.module(*inputs)


def test_cameras_that_cannot_be_understood_cost_computing_and_no_failure(compiled, driver, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="lightint_compile.runtime"):
        latents = toy_rollout(compiled, PATH * 1.5)
    assert all(bool(chunk.isfinite().all()) for chunk in latents)
    assert "all of its memory is gathered" in caplog.text
    assert lightint_compile.decisions(compiled) == []


def test_a_batch_shares_one_decision_that_is_safe_for_all_of_it() -> None:
    pair = torch.cat([PATH, walk(40, 9.0, 0.0)])
    together, alone = plan_batch(pair), [plan(each, PublishedRules()) for each in pair]
    assert any(a.reused_steps != b.reused_steps for a, b in zip(*alone, strict=True)), "the two paths disagree"
    for decision, *each in zip(together, *alone, strict=True):
        assert set(decision.context_frames) == set().union(*(e.context_frames for e in each))
        assert set(decision.reused_steps) == set.intersection(*(set(e.reused_steps) for e in each))
    assert without_drift(plan_batch(torch.cat([PATH, PATH]))) == without_drift(alone[0])


def plan_batch(cameras):
    planner = Planner(PublishedRules())
    return [planner.decide(cameras[:, : 4 * (chunk + 1)]) for chunk in range(cameras.shape[1] // 4)]


def test_hysteresis_looks_at_the_chunk_before_in_the_same_rollout_only() -> None:
    rules, first, second = AdaptiveRules(), walk(40, 0.0, 0.0)[0], PATH[0]
    planner, expected = Planner(rules), plan(second, rules)
    for chunk in range(10):
        planner.decide(first[: 4 * (chunk + 1)])
        planner.decide(second[: 4 * (chunk + 1)])
    assert planner.decisions == expected
    for extra in range(SLOTS):
        planner.decide(walk(8, 20.0 + extra)[0])
    assert len(planner._rollouts) == SLOTS


@pytest.mark.parametrize(("path", "context", "reusing"), [("left-31,right-32", 148, 8), ("w-63", 168, 13)])
def test_the_command_reproduces_the_published_decisions(path: str, context: int, reusing: int) -> None:
    result = CliRunner().invoke(
        app, ["decisions", "--trajectory", path, "--latents", "64", "-p", "published", "--json"]
    )
    made = json.loads(result.output)
    assert [row["chunk"] for row in made] == list(range(16))
    assert sum(len(row["context_frames"]) for row in made) == context
    assert sum(bool(row["reused_steps"]) for row in made) == reusing
    assert {"overlap", "novel", "threshold", "margin"} <= made[0].keys()


def test_the_command_says_what_the_model_itself_would_do() -> None:
    result = CliRunner().invoke(app, ["decisions", "--trajectory", "left-31", "--preset", "exact"])
    assert result.output.splitlines()[-1].startswith("100 context frames in 8 chunks, 0 fewer")


def test_points_survive_json() -> None:
    policy = Policy(rules="published", memory=16, adapt_context=True, steps=(1, 2), overlap=0.6)
    for spec in (PlanPoint(policy), StepPoint(1, 0.25), StepPoint(2), StepPoint(2, 0.1, each=True)):
        assert point_from(json.loads(json.dumps(spec.to_dict()))) == spec


def test_context_is_never_longer_than_the_model_allows() -> None:
    plan_point = Decisions({"plan": PlanPoint(Policy(memory=12, adapt_context=True))}).bound["plan"]
    for frames in range(4, 44, 4):
        cameras = torch.cat([there_and_back(frames + 4)] * 2)
        cameras[1] = walk(frames + 4, 9.0, 0.0)
        index, *_ = plan_point(cameras, torch.randn(2, 4, frames, 4, 6) * torch.rand(frames)[:, None, None])
        assert 0 < len(index) <= 12 and bool((index.diff() > 0).all()) and int(index[-1]) == frames - 1


def test_cameras_that_do_not_belong_to_the_history_cost_the_saving_and_no_failure(caplog) -> None:
    plan_point = Decisions({"plan": PlanPoint(Policy(adapt_context=True))}).bound["plan"]
    for frames, cameras in ((8, PATH), (12, PATH[:, :12])):
        with caplog.at_level(logging.WARNING, logger="lightint_compile.runtime"):
            index, record, *_ = plan_point(cameras, torch.randn(1, 4, frames, 4, 6))
        assert index.tolist() == list(range(frames)) and record.decision.reused_steps == ()
        assert f"{cameras.shape[1]} cameras and a history of {frames}" in caplog.text


def test_thresholds_reach_the_passes() -> None:
    text = str(pipeline_of(LightintOptions(preset="all", overlap=0.6, drift=0.1)))
    assert "adaptive-context{overlap=0.6}" in text and "step-cache{drift=0.1,overlap=0.6}" in text
    with pytest.raises(OptionError, match="no pass of the pipeline takes"):
        pipeline_of(LightintOptions(preset="exact", drift=0.1))


def test_a_loop_outside_the_module_is_told_what_to_gather_and_reuses_steps() -> None:
    sigmas, calls = [1.0, 0.9375, 0.8333, 0.625], []

    def predict(value: float) -> torch.Tensor:
        calls.append(value)
        return torch.full((2,), value)

    with lightint_compile.rollout(cameras=PATH[0], rules=PublishedRules()) as run:
        with pytest.raises(StateError, match="no chunk has begun"):
            run.step(0, lambda: predict(0.0))
        for chunk in range(10):
            decision = run.chunk(chunk)
            calls.clear()
            got = [run.step(k, lambda s=sigma: predict(s), sigma) for k, sigma in enumerate(sigmas)]
            expected = [s for k, s in enumerate(sigmas) if k not in decision.reused_steps]
            assert calls == expected
            assert float(got[2][0]) == pytest.approx(1.0 if decision.reused_steps else sigmas[2])
        assert run.decisions == plan(PATH[0], PublishedRules())
        with pytest.raises(InputError, match="no chunk 10"):
            run.chunk(10)
    assert run.decisions == []


@pytest.mark.parametrize("sigmas", [(None, None, None), (1.0, 0.9, 0.5)])
def test_the_halves_of_a_guidance_pair_outside_the_module_follow_their_own_predictions(sigmas) -> None:
    with lightint_compile.rollout(cameras=PATH[0], rules=PublishedRules(steps=(2,), gate=0.0)) as run:
        for chunk in range(4):
            run.chunk(chunk)
        steps = [[run.step(k, lambda v=v + k: torch.tensor(v), s) for v in (1.0, -9.0)] for k, s in enumerate(sigmas)]
    conditional, unconditional = map(float, steps[2])
    assert conditional - unconditional == pytest.approx(10.0)
    assert conditional == pytest.approx(2.0 if sigmas[0] is None else 6.0)


def test_a_loop_outside_the_module_extrapolates_from_two_steps_and_takes_its_view_from_the_intrinsics() -> None:
    rules = PublishedRules(steps=(2,), gate=0.0)
    with lightint_compile.rollout(cameras=PATH[0], rules=rules) as run:
        for chunk in range(4):
            run.chunk(chunk)
        steps = [run.step(k, lambda s=s: torch.tensor(3 * s), s) for k, s in enumerate((1.0, 0.9, 0.5))]
    torch.testing.assert_close(steps[2], torch.tensor(1.5))
    wide = torch.diag(torch.tensor([0.5, 0.5, 1.0]))
    view = lightint_compile.rollout(cameras=PATH[0], intrinsics=wide)._planner.rules.view
    assert (view.horizontal, view.vertical) == pytest.approx((90.0, 90.0))


def test_what_is_found_while_a_chunk_runs_is_told_unless_the_chunk_was_taken_back() -> None:
    planner = Planner(PublishedRules(gate=0.0))
    for last in range(4, 24, 4):
        taken_back = planner.record(PATH[0, :last])
    kept = planner.record(PATH[0, :20])
    assert not taken_back.checked(1, 0.5, 0.25) and kept.checked(2, 0.1, 0.25)
    assert [each.chunk for each in planner.decisions] == list(range(5))
    assert (planner.decisions[-1].drifts, planner.decisions[-1].refused_steps) == (((2, 0.1),), ())


def test_a_step_that_is_called_twice_is_refused_once() -> None:
    """Guidance calls a step twice, and both calls may be refused."""
    decision = Decision(chunk=0, context_frames=(), reused_steps=(1, 2)).refusing(1).refusing(1)
    checked = decision.after_check(1, 0.5, refused=True).after_check(2, 0.6, refused=True)
    assert checked.refused_steps == (1, 2)
    assert checked.drifts == ((1, 0.5), (2, 0.6))
