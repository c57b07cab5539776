"""Worlds of other chunks and views: decisions, and a compiled toy world with chunks of one, three and four frames."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from toy_world import ToyWorld, there_and_back, toy_rollout, walk
from typer.testing import CliRunner

import lightint_compile
from lightint_compile import capture
from lightint_compile.cli.app import app
from lightint_compile.compiled import CompiledGraph
from lightint_compile.errors import InputError, OptionError
from lightint_compile.models.worldplay.world_model import FAMILY
from lightint_compile.options import LightintOptions
from lightint_compile.passes.ir.decision_points import PLAN
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.passes.ir.world_spec import PUBLISHED, WorldSpec
from lightint_compile.path_decisions import decide
from lightint_compile.pipeline_run import rewrite
from lightint_compile.runtime.planner import Planner, plan
from lightint_compile.runtime.rules import AdaptiveRules, PublishedRules, rules_of

SLOW, OTHERS = pytest.mark.slow, [(3, 0), (4, 0), (4, 1)]

STILL = there_and_back(61, 0.0)
"""A camera that stands: everything was seen before."""


class Chunked(ToyWorld):
    """Chunks of ``chunk`` frames, of which the rollout may begin with one frame alone."""

    def __init__(self, chunk: int) -> None:
        super().__init__(depth=1)
        self.chunk = chunk

    def forward(self, noise, history, extrinsics):
        context = None
        if history is not None:
            chosen = self.select(extrinsics, history.shape[2])
            context = self.prefill(history.index_select(2, chosen), extrinsics.index_select(1, chosen), chosen.shape[0])
        for step in range(self.steps):
            velocity = self.predict(noise, extrinsics[:, -self.chunk :], self.sigmas[step], context)
            noise = noise + velocity * (self.sigmas[step + 1] - self.sigmas[step])
        return noise


def rollout(model, chunk: int, lead: int, path: torch.Tensor) -> list[torch.Tensor]:
    """Latents of every chunk behind ``lead`` frames that are given."""
    draw = torch.Generator().manual_seed(0)
    history = torch.randn(1, 4, lead, 4, 6, generator=draw) if lead else None
    found = []
    for first in range(lead, path.shape[1] - chunk + 1, chunk):
        seen, noise = path[:, : first + chunk].clone(), torch.randn(1, 4, chunk, 4, 6, generator=draw)
        if history is not None and first > 1:
            torch._dynamo.mark_dynamic(history, 2)
            torch._dynamo.mark_dynamic(seen, 1)
        with torch.no_grad():
            found.append(model(noise, history, seen))
        history = found[-1].clone() if history is None else torch.cat([history, found[-1]], 2)
    return found


def compiled_of(chunk: int, **options):
    torch._dynamo.reset()
    torch.manual_seed(0)
    return torch.compile(Chunked(chunk).eval(), backend="lightint", options={"delegate": "eager", **options})


def missed(compiled) -> dict[str, str]:
    sections = lightint_compile.report(compiled).sections
    return {each.pass_name: each.message for graph in sections for each in graph.remarks if each.kind == "missed"}


@pytest.mark.parametrize(("chunk", "lead"), [(1, 0), (3, 1), *(pytest.param(*each, marks=SLOW) for each in OTHERS)])
def test_a_compiled_world_decides_as_its_rules_do(chunk: int, lead: int) -> None:
    frames = lead + chunk * (27 // chunk)
    path = there_and_back(frames + frames % 2, 12.0)[:, :frames]
    compiled = compiled_of(chunk, preset="published", strict=True)
    got, made = rollout(compiled, chunk, lead, path), lightint_compile.decisions(compiled)
    expected = plan(path[0], PublishedRules(chunk=chunk))
    assert [(each.chunk, each.context_frames, each.reused_steps) for each in made] == [
        (each.chunk, each.context_frames, each.reused_steps) for each in expected
    ]
    assert any(each.reused_steps for each in made) and any(each.saved_frames for each in made)
    whole = next(each.chunk for each in made if each.saved_frames or each.reused_steps)
    exact = rollout(compiled._orig_mod, chunk, lead, path)
    for left, right in zip(got[:whole], exact[:whole], strict=True):
        torch.testing.assert_close(left, right)
    assert len(CompiledGraph.of(compiled)) == (3 if chunk == 1 else 2)
    assert (missed(compiled).get("adaptive-context") == "1 context frames are fixed in the captured graph") == (
        chunk == 1 or lead == 1
    ), "sizes of one are constants of the graph"


def test_a_path_may_have_one_frame_in_front_of_its_chunks_and_no_two() -> None:
    planner = Planner(AdaptiveRules.of(WorldSpec(chunk=3)))
    assert [planner.decide(STILL[:, : 1 + 3 * number]).chunk for number in range(1, 8)] == list(range(7))
    with pytest.raises(InputError, match="whole number of chunks"):
        planner.decide(STILL[:, :8])


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_remembered_clips_are_whole_chunks_behind_the_frame_in_front(chunk: int) -> None:
    rules = AdaptiveRules.of(WorldSpec(chunk=chunk, clip=3 if chunk == 3 else 4))
    for lead in (0, 1) if chunk > 1 else (0,):
        made = Planner(rules).decide(STILL[:, : lead + 48 + chunk])
        clip, newest = rules.clip, lead + 48 - rules.clip
        remembered = [each for each in made.context_frames if clip <= each < newest]
        assert made.context_frames[:clip] == tuple(range(clip)) and made.context_frames[-1] == lead + 47
        assert len(remembered) == clip and (remembered[0] - lead) % clip == 0 and made.reused_steps


def test_the_view_can_be_stated() -> None:
    path = walk(44, 4.0, 0.0)[0]
    narrow, wide, near = (
        rules_of(Policy.of(world, adapt_context=True, steps=(1, 2)))
        for world in (WorldSpec(fov=(30.0, 20.0)), WorldSpec(fov=(120.0, 90.0)), WorldSpec(view_depth=1.0))
    )
    overlaps = [plan(path, rules)[-1].overlap for rules in (narrow, wide, near)]
    assert overlaps[0] < overlaps[2] < overlaps[1]
    walked = walk(44, 0.0, 0.3)[0]
    assert plan(walked, near)[-1].overlap != plan(walked, rules_of(Policy(adapt_context=True)))[-1].overlap


def test_a_stated_world_reaches_the_compiled_plan() -> None:
    stated = {"fov": [120, 90], "view_depth": 2.5, "clip_frames": 3}
    compiled = compiled_of(4, preset="all", strict=True, **stated)
    toy_rollout(compiled, there_and_back(40))
    policies = {
        point.policy
        for graph in CompiledGraph.of(compiled)
        for point in graph.driver.decisions.points.values()
        if hasattr(point, "policy") and point.policy.adapt_context
    }
    (policy,) = policies
    assert (policy.fov, policy.view_depth, policy.clip, policy.chunk) == ((120, 90), 2.5, 3, 4)
    assert {len(each.context_frames) % 3 for each in lightint_compile.decisions(compiled)[-4:]} == {0}


def test_less_memory_needs_shorter_clips() -> None:
    model = Chunked(3).eval()
    model.memory = 9
    inputs = torch.zeros(1, 4, 3, 4, 6), torch.zeros(1, 4, 6, 4, 6), STILL[:, :9]
    for options, kind, told in (
        ({}, "missed", "need room for 12"),
        ({"clip_frames": 3}, "applied", "at most 9 context"),
    ):
        options = {"passes": "adaptive-context", "strict": True, **options}
        report = lightint_compile.explain(model, *inputs, dynamic={"history": 2, "extrinsics": 1}, options=options)
        (remark,) = (each for each in report.sections[0].remarks if each.pass_name == "adaptive-context")
        assert remark.kind == kind and told in remark.message


def test_a_chunk_that_the_steps_contradict_decides_nothing_and_says_why() -> None:
    compiled = compiled_of(4, preset="published", chunk_frames=3)
    toy_rollout(compiled, STILL[:, :16])
    assert lightint_compile.decisions(compiled) == []
    told = missed(compiled)
    assert {"adaptive-context", "step-cache"} <= set(told)
    assert all(
        "stated to have 3 frames, and the steps read the cameras of 4" in told[name] for name in told if "-c" in name
    )


def test_facts_of_the_world_do_not_ask_for_approximation() -> None:
    from lightint_compile.options.pipelines import unasked_passes

    assert unasked_passes(LightintOptions(fov=[90, 60], chunk_frames=3)) == unasked_passes(LightintOptions())


@pytest.mark.parametrize(("chunk", "lead"), [(1, 0), (3, 0), (3, 1), (4, 1)])
def test_a_loop_outside_has_chunks_of_its_own_length(chunk: int, lead: int) -> None:
    path = there_and_back(61 + lead % 2, 6.0)[0, : lead + 12 * chunk]
    with lightint_compile.rollout(cameras=path, chunk_frames=chunk) as run:
        made = [run.chunk(number) for number in range(12)]
        with pytest.raises(InputError, match="no chunk 12"):
            run.chunk(12)
    assert made == plan(path, AdaptiveRules.of(WorldSpec(chunk=chunk)))


@pytest.mark.parametrize(("steps", "interior"), [(2, ()), (4, (1, 2)), (6, (1, 2, 3, 4))])
def test_the_steps_between_the_first_and_the_last_may_be_reused(steps: int, interior: tuple[int, ...]) -> None:
    tiny = FAMILY.sizes["tiny"]()
    model = dataclasses.replace(tiny, config=dataclasses.replace(tiny.config, steps=steps))
    assert model.spec.denoising_steps == steps
    assert AdaptiveRules.of(model.spec).steps == interior
    made = decide("left-31,right-32", 64, "cache", model=model)
    assert {step for decision in made for step in decision.reused_steps} == set(interior)


def test_what_is_no_chunk_is_refused() -> None:
    with pytest.raises(OptionError, match="chunk=0"):
        lightint_compile.rollout(cameras=STILL[0], chunk_frames=0)
    with pytest.raises(InputError, match="rules are for chunks of 4"):
        lightint_compile.rollout(cameras=STILL[0], chunk_frames=3, rules=PublishedRules())
    for frames in (8, 2, 1):
        with pytest.raises(InputError, match="a chunk has 3"):
            lightint_compile.rollout(cameras=STILL[0, :frames], chunk_frames=3)
    with pytest.raises(InputError, match="no whole number"):
        plan(STILL[0, :1], AdaptiveRules())
    for wrong in ({"fov": (60.0, 180.0)}, {"view_depth": 0.0}, {"clip": 0}, {"denoising_steps": 0}):
        with pytest.raises(OptionError, match="no world"):
            WorldSpec(**wrong)


def test_the_command_decides_for_other_chunks() -> None:
    line = ["decisions", "--trajectory", "left-29,right-30", "--chunk-frames", "3", "--json"]
    made = json.loads(CliRunner().invoke(app, line).output)
    assert [row["chunk"] for row in made] == list(range(20)) and any(row["reused_steps"] for row in made)


def test_the_published_world_is_the_default() -> None:
    assert Policy.of(PUBLISHED) == Policy() and AdaptiveRules.of(PUBLISHED) == AdaptiveRules()
    assert PUBLISHED.clip_probes == (0, 2) and PUBLISHED.least_memory == 12


class Zoomed(Chunked):
    """Reads the focal lengths of its cameras."""

    def forward(self, noise, history, extrinsics, intrinsics):
        return super().forward(noise * intrinsics[0, 0], history, extrinsics)


def test_a_stated_view_takes_the_place_of_intrinsics() -> None:
    inputs = torch.zeros(1, 4, 4, 4, 6), torch.zeros(1, 4, 8, 4, 6), STILL[:, :12], torch.eye(3)
    program = capture.trace(Zoomed(4).eval(), inputs, dynamic={"history": 2, "extrinsics": 1})
    for stated, read in (({}, True), ({"fov": [70, 50]}, False)):
        options = LightintOptions(passes="adaptive-context", roles={"intrinsics": "intrinsics"}, strict=True, **stated)
        graph = rewrite(program.snapshot(), options).program.graph
        (plan_node,) = (node for node in graph.nodes if node.target == PLAN)
        assert ("intrinsics" in plan_node.kwargs) == read
