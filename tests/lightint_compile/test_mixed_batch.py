"""A batch whose elements are decided differently, from end to end: each gets what it gets in a rollout of its own."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from torch._dynamo.utils import counters
from toy_world import ToyWorld, there_and_back, walk

import lightint_compile
from lightint_compile.compiled import CompiledGraph
from lightint_compile.models.worldplay import (
    Trajectory,
    WorldPlayChunk,
    WorldPlayConfig,
    example_scene,
    fill_random,
    mark_frames_dynamic,
)
from lightint_compile.models.worldplay.rollout import video_noise
from lightint_compile.runtime import device_to_host as transfer
from lightint_compile.runtime.decision import Decision
from lightint_compile.runtime.device_to_host import to_host
from lightint_compile.runtime.planner import Planner, plan
from lightint_compile.runtime.rules import AdaptiveRules

FRAMES = 28
BACK, ON = there_and_back(FRAMES).double(), walk(FRAMES, 0.0, 0.3).double()
NOISE = torch.randn(4, 4, FRAMES, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def compiled_for(drift: str = "none", strategy: str = "extrapolate"):
    """A compiled toy world."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    passes = f"hoist-invariants,outline-regions,step-cache{{strategy={strategy},drift={drift}}}"
    options = {"passes": passes, "delegate": "eager", "strict": True}
    module = torch.compile(ToyWorld().double().eval(), backend="lightint", options=options, dynamic=False)
    return module


def rolled(module, cameras, noise):
    """Latents chunk by chunk."""
    history = None
    for first in range(0, cameras.shape[1], 4):
        seen = cameras[:, : first + 4].contiguous()
        if history is not None:
            torch._dynamo.mark_dynamic(history, 2)
            torch._dynamo.mark_dynamic(seen, 1)
        with torch.no_grad():
            latents = module(noise[:, :, first : first + 4].contiguous(), history, seen)
        history = latents.clone() if history is None else torch.cat([history, latents], 2)
        yield latents


def rollout(module, cameras, noise):
    """All latents, the decisions, and how often each region ran, once everything is compiled."""
    for _ in rolled(module, cameras[:, :12], noise):
        pass
    lightint_compile.reset(module)
    calls: Counter[str] = Counter()
    driver = CompiledGraph.of(module)[-1].driver

    def counted(name, region, *args):
        calls[name] += 1
        return region(*args)

    with driver.watched(counted):
        latents = torch.cat(list(rolled(module, cameras, noise)), 2)
    return latents, lightint_compile.decisions(module), calls


def steps_of(decisions):
    return [(each.reused_steps, each.refused_steps) for each in decisions]


def of_element(decisions, element):
    return [each.elements[element] if each.elements else each for each in decisions]


@pytest.fixture(scope="module")
def three():
    return compiled_for()


@pytest.fixture(scope="module")
def one():
    return compiled_for()


def test_each_element_gets_what_it_gets_alone_and_computes_its_own_steps_only(three, one) -> None:
    paths = torch.cat([BACK, ON, there_and_back(FRAMES, 6.0).double()])
    together, decisions, calls = rollout(three, paths, NOISE[:3])
    reusing = 0
    for element in range(3):
        rows = slice(element, element + 1)
        alone, own, _ = rollout(one, paths[rows], NOISE[rows])
        torch.testing.assert_close(together[rows], alone, rtol=1e-10, atol=1e-12)
        assert steps_of(of_element(decisions, element)) == steps_of(own)
        assert [each.overlap for each in of_element(decisions, element)[1:] if each.reused_steps] == [
            each.overlap for each in own if each.reused_steps
        ]
        reusing += sum(len(each.reused_steps) for each in own)
    assert [bool(each.reused_steps) for each in of_element(decisions, 1)] == [False] * 7
    mixed = [each for each in decisions if each.elements]
    assert mixed and reusing > 0 and not any(each.reused_steps for each in decisions)
    # Nothing is watched, so both blocks of a step run for the elements that compute it.
    rows_computed = sum(2 - len(own.reused_steps) for each in mixed for own in each.elements)
    rows_run = [name for name in calls.elements() if name.startswith("block") and name.endswith("_row")]
    assert len(rows_run) == 2 * rows_computed


def test_elements_that_agree_are_told_of_as_before(three, one) -> None:
    _, together, calls = rollout(three, torch.cat([BACK] * 3), NOISE[:3])
    _, alone, _ = rollout(one, BACK, NOISE[:1])
    assert [each.to_dict() for each in together] == [each.to_dict() for each in alone]
    assert not any(name.endswith("_row") for name in calls) and any(each.reused_steps for each in together)


def test_decisions_of_elements_are_plain_data(three) -> None:
    _, decisions, _ = rollout(three, torch.cat([BACK, ON, BACK]), NOISE[:3])
    mixed = next(each for each in decisions if each.elements)
    data = json.loads(json.dumps(mixed.to_dict()))
    assert [bool(own["reused_steps"]) for own in data["elements"]] == [True, False, True]
    assert all({"overlap", "margin", "novel"} <= own.keys() and "elements" not in own for own in data["elements"])
    assert mixed.reused_steps == () and mixed.novel and mixed.overlap == min(own.overlap for own in mixed.elements)
    assert "element 1: computes every step" in str(mixed) and "element 0: reuses 1, 2" in str(mixed)


def test_nothing_is_compiled_again_however_the_elements_divide(three) -> None:
    rollout(three, torch.cat([BACK, BACK, BACK]), NOISE[:3])
    driver = CompiledGraph.of(three)[-1].driver
    before = driver.compilations
    counters.clear()
    for paths in ([BACK, ON, ON], [ON, BACK, BACK], [BACK, BACK, BACK], [ON, ON, ON], [ON, BACK, ON]):
        rollout(three, torch.cat(paths), NOISE[:3])
    assert driver.compilations == before and CompiledGraph.of(three)[-1].driver is driver
    assert not counters["recompiles"] and counters["stats"]["unique_graphs"] == 0


@pytest.mark.slow
def test_a_guidance_pair_in_one_batch_is_told_apart_by_drift_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    module = compiled_for("1e9", "hold")
    cameras = torch.cat([BACK, BACK])
    _, decisions, _ = rollout(module, cameras, NOISE[:2])
    drifts = [each.drifts for each in decisions if each.reused_steps]
    assert drifts and not any(each.elements for each in decisions), "the largest drift of the pair is told"
    measured: list[list[float]] = []
    monkeypatch.setattr(
        transfer, "to_host", lambda values: measured.append(values.flatten().tolist()) or to_host(values)
    )
    rollout(module, cameras, NOISE[:2])
    pairs = [values for values in measured if len(values) == 2]
    assert [max(values) for values in pairs] == pytest.approx([drift for each in drifts for _, drift in each])
    bound = f"{sum(pairs[0]) / 2!r}"
    apart = compiled_for(bound, "hold")
    together, decisions, _ = rollout(apart, cameras, NOISE[:2])
    assert any(each.elements for each in decisions)
    single = compiled_for(bound, "hold")
    for element in range(2):
        rows = slice(element, element + 1)
        alone, own, _ = rollout(single, BACK, NOISE[rows])
        torch.testing.assert_close(together[rows], alone, rtol=1e-10, atol=1e-12)
        assert steps_of(of_element(decisions, element)) == steps_of(own)


def test_the_host_waits_as_often_as_for_one_element(monkeypatch: pytest.MonkeyPatch) -> None:
    module = compiled_for("1e9")
    reads: list[int] = []
    monkeypatch.setattr(transfer, "to_host", lambda values: reads.append(values.numel()) or to_host(values))
    before = 0
    for number, _ in enumerate(rolled(module, torch.cat([BACK, ON]), NOISE[:2])):
        waits, before = reads[before:], len(reads)
        if number == 0:
            assert waits == []
            continue
        made = lightint_compile.decisions(module)[-1]
        may = {step for own in made.elements for step in own.reused_steps}
        assert waits == [2 * 16 * 4 * (number + 1)] + [2] * len(may)


def test_every_element_has_its_own_hysteresis() -> None:
    paths = torch.cat([there_and_back(40), walk(40, 9.0, 0.0), there_and_back(40, 4.0)])
    planner, rules = Planner(AdaptiveRules(), each=True), AdaptiveRules()
    alone = [plan(path, rules) for path in paths]
    for chunk in range(10):
        for _ in range(2):  # asked again, as after an exception
            decision, each = planner.decide_each(paths[:, : 4 * (chunk + 1)])
        assert each == tuple(own[chunk] for own in alone)
        assert set(decision.reused_steps) == set.intersection(*(set(own.reused_steps) for own in each))
        assert decision.elements == () or {own.context_frames for own in decision.elements} == {decision.context_frames}
    assert any(decision.elements for decision in planner.decisions)


PATHS = [Trajectory.from_pose_string(text) for text in ("left-9,right-10", "w-19")]


def worldplay():
    torch._dynamo.reset()
    chunk = fill_random(WorldPlayChunk(WorldPlayConfig.tiny())).double().eval().requires_grad_(False)
    exact = "canonicalize-attention,sink-row-repeats,hoist-invariants,dead-tail"
    options = {"passes": f"{exact},outline-regions,step-cache", "delegate": "eager", "strict": True}
    return torch.compile(chunk, backend="lightint", options=options, dynamic=False)


def worldplay_rollout(module, elements):
    config = WorldPlayConfig.tiny()
    scenes = [example_scene(config, dtype=torch.float64, seed=element) for element in elements]
    scene = [torch.cat([getattr(s, name) for s in scenes]) for name in ("image", "text", "glyphs", "vision")]
    cameras = [
        torch.stack([getattr(PATHS[element], name) for element in elements]).double()
        for name in ("extrinsics", "intrinsics", "actions")
    ]
    noise = torch.cat([video_noise(config, 20, element, scene[0]) for element in elements])
    history, chunks = None, []
    for first in range(0, 20, 4):
        seen = [tensor[:, : first + 4].contiguous() for tensor in cameras]
        mark_frames_dynamic(history, *seen)
        with torch.no_grad():
            chunks.append(module(noise[:, :, first : first + 4].contiguous(), history, *seen, *scene))
        history = chunks[-1].clone() if history is None else torch.cat([history, chunks[-1]], 2)
    return history


@pytest.mark.slow
def test_worldplay_rolls_out_two_scenes_in_one_batch_as_it_does_each_alone() -> None:
    pair = worldplay()
    together = worldplay_rollout(pair, [0, 1])
    decisions = lightint_compile.decisions(pair)
    single = worldplay()
    for element in range(2):
        alone = worldplay_rollout(single, [element])
        torch.testing.assert_close(together[element : element + 1], alone, rtol=1e-9, atol=1e-11)
        assert steps_of(of_element(decisions, element)) == steps_of(lightint_compile.decisions(single))
    mixed = [each for each in decisions if each.elements]
    assert mixed and all(bool(each.elements[0].reused_steps) and not each.elements[1].reused_steps for each in mixed)


def test_elements_share_what_a_batch_decides_together() -> None:
    one = Decision(chunk=3, context_frames=(0, 1), reused_steps=(1,))
    other = Decision(chunk=3, context_frames=(0, 1, 2, 3), saved_frames=2)
    batch = Decision(chunk=3, context_frames=(0, 1, 2, 3), kept_frames=2, setting="all").with_elements((one, other))
    shared = [(own.context_frames, own.kept_frames, own.setting) for own in batch.elements]
    assert shared == [((0, 1, 2, 3), 2, "all")] * 2
    assert [own.reused_steps for own in batch.elements] == [(1,), ()]
    assert not batch.with_elements((other, other)).elements
