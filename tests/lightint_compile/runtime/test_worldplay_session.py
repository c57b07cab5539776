"""A WorldPlay rollout with everything on: one compile, few reads from the device, and exact where guards refuse."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from torch._dynamo.utils import counters

import lightint_compile
from lightint_compile.compiled import CompiledGraph
from lightint_compile.errors import StateError
from lightint_compile.models.worldplay import (
    Trajectory,
    WorldPlayChunk,
    WorldPlayConfig,
    example_scene,
    fill_random,
    rollout,
)
from lightint_compile.runtime import decisions as answers
from lightint_compile.runtime import device_to_host as transfer
from lightint_compile.runtime.device_to_host import to_host

CONFIG = WorldPlayConfig.tiny()
EXACT = "canonicalize-attention,sink-row-repeats,hoist-invariants,dead-tail"
SPARSE = "sparse-attention{density=0.5,context-density=none,min-tokens=0,tile=4x2x2}"
PASSES = {
    "all": f"{EXACT},adaptive-context,{SPARSE},outline-regions,step-cache",
    "kept": f"{EXACT},adaptive-context,context-reuse{{age=4}},{SPARSE},outline-regions,step-cache",
    "sparse": f"{EXACT},{SPARSE},outline-regions",
}
PATH = Trajectory.from_pose_string("left-15,right-16")


class Session:
    """A compiled chunk on a device, and rollouts along paths."""

    def __init__(self, variant: str, device: str = "cpu", delegate: str = "eager") -> None:
        self.device = torch.device(device)
        chunk = fill_random(WorldPlayChunk(CONFIG)).to(self.device).eval().requires_grad_(False)
        options = {"passes": PASSES[variant], "delegate": delegate, "strict": True}
        self.compiled = torch.compile(chunk, backend="lightint", fullgraph=True, options=options)
        self.scene = example_scene(CONFIG, self.device, torch.float32)
        for number, _ in enumerate(self.rollout()):
            if number == 2:
                break

    def rollout(self, path=PATH, call=None):
        return rollout(call or self.compiled, CONFIG, self.scene, path)

    def latents(self, **more):
        lightint_compile.reset(self.compiled)
        return [result.latents for result in self.rollout(**more)]

    @property
    def planner(self):
        drivers = [graph.driver for graph in CompiledGraph.of(self.compiled)]
        return next(d.decisions._planners.latest for d in drivers if d.decisions.made)


@pytest.fixture(scope="module")
def session() -> Session:
    torch._dynamo.reset()
    return Session("all")


def test_after_warm_up_nothing_breaks_or_compiles_again(session: Session) -> None:
    counters.clear()
    compiled = [graph.driver.compilations for graph in CompiledGraph.of(session.compiled)]
    session.latents()
    assert not counters["graph_break"] and not counters["recompiles"]
    assert counters["stats"]["unique_graphs"] == 0 and counters["stats"]["calls_captured"] == 0
    assert [graph.driver.compilations for graph in CompiledGraph.of(session.compiled)] == compiled
    made = lightint_compile.decisions(session.compiled)
    assert {len(each.context_frames) for each in made} >= {4, 8, 12} and any(each.reused_steps for each in made)


def test_the_host_waits_once_a_chunk_and_once_a_guarded_step(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    monkeypatch.setattr(transfer, "to_host", lambda values: reads.append(values.numel()) or to_host(values))
    before = 0
    for number, _ in enumerate(session.rollout()):
        waits, before = reads[before:], len(reads)
        if number == 0:
            assert waits == [], "the first chunk has nothing to decide"
            continue
        made = lightint_compile.decisions(session.compiled)[-1]
        cameras, drifts = waits[0], waits[1:]
        assert cameras == 16 * 4 * (number + 1) + 1 + 9, "cameras, one number about the latents, and intrinsics"
        assert drifts == [1] * len(made.reused_steps)


def test_with_keys_and_values_kept_the_host_waits_no_more_often_and_nothing_compiles_again(monkeypatch) -> None:
    session, reads = Session("kept"), []
    session.latents()
    counters.clear()
    compiled = [graph.driver.compilations for graph in CompiledGraph.of(session.compiled)]
    monkeypatch.setattr(transfer, "to_host", lambda values: reads.append(values.numel()) or to_host(values))
    lightint_compile.reset(session.compiled)
    before = 0
    for number, _ in enumerate(session.rollout()):
        waits, before = len(reads) - before, len(reads)
        if number == 0:
            assert waits <= 1, "it may share a graph with those that decide, and checks the prompt"
            continue
        made = lightint_compile.decisions(session.compiled)
        assert waits == 1 + len(made[-1].reused_steps)
    assert any(each.kept_frames for each in made) and any(each.reused_steps for each in made)
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 0
    assert [graph.driver.compilations for graph in CompiledGraph.of(session.compiled)] == compiled


@pytest.mark.slow
def test_where_every_guard_refuses_nothing_but_sparse_attention_is_left(session: Session) -> None:
    plain = Session("sparse").latents()
    before = session.planner.rules
    session.planner.rules = dataclasses.replace(before, adapt_context=False)
    try:
        with refusing(session):
            refused = session.latents()
        made = lightint_compile.decisions(session.compiled)
    finally:
        session.planner.rules = before
    assert any(each.refused_steps for each in made)
    assert all(set(each.refused_steps) == set(each.reused_steps) for each in made)
    torch.testing.assert_close(refused, plain)


def refusing(session: Session):
    """Drift checks that never pass."""
    patch = pytest.MonkeyPatch()
    patch.setattr(answers, "relative_change", lambda now, before: torch.tensor(float("inf")))
    patch.setattr(transfer, "to_host", to_host)

    class Undone:
        def __enter__(self):
            return session

        def __exit__(self, *_):
            patch.undo()

    return Undone()


def test_the_report_shows_the_chunk_as_a_short_root_graph(session: Session) -> None:
    section = lightint_compile.report(session.compiled).sections[-1]
    phases = [phase for phase, _ in section.runs if not phase.startswith(("glue", "block", "memo", "extrapolate"))]
    order = ["decide", "context", "prefill", "step 0", "step 1", "step 2", "step 3"]
    assert [phase for phase in phases if phase in order] == order and len(phases) <= 13
    said = dict(section.runs)
    assert "context frames and reuse of steps 1, 2" in said["decide"] and "extrinsics and history" in said["decide"]
    guarded = [phase for phase, text in section.runs if "[if reused and the first block drifted" in text]
    assert guarded == ["step 1", "step 2"]
    assert "2 x block_" in said["step 0"] and said["step 0"] == said["step 3"]
    regions = {phase for phase, _ in section.runs} - set(phases)
    named = " ".join(text for phase, text in section.runs if phase in phases)
    assert all(region in named for region in regions)
    assert "  what runs\n    decide       context frames" in str(lightint_compile.report(session.compiled))


def test_another_scene_and_prompt_start_afresh(session: Session) -> None:
    alone = session.latents()
    lightint_compile.reset(session.compiled)
    first, scene = list(session.rollout()), session.scene
    session.scene = example_scene(CONFIG, session.device, torch.float32, seed=7)
    try:
        other = [result.latents for result in session.rollout()]
    finally:
        session.scene = scene
    again = [result.latents for result in session.rollout()]
    torch.testing.assert_close([result.latents for result in first], alone)
    torch.testing.assert_close(again, alone)
    assert not any(torch.allclose(a, b) for a, b in zip(other, alone, strict=True))


def test_a_driver_is_copied_without_its_decisions_and_never_pickled(session: Session) -> None:
    session.latents()
    driver = next(g.driver for g in CompiledGraph.of(session.compiled) if g.driver.decisions.made)
    assert copy.deepcopy(driver).decisions.made == []
    with pytest.raises(StateError, match="cannot be pickled"):
        pickle.dumps(driver)


@pytest.mark.gpu
def test_on_a_gpu_the_driver_waits_for_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    session, waits = Session("all", "cuda"), []

    def allowed(values: torch.Tensor) -> torch.Tensor:
        torch.cuda.set_sync_debug_mode("default")
        waits.append(values.numel())
        try:
            return to_host(values)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    def watched(*inputs):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return session.compiled(*inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    session.latents()
    monkeypatch.setattr(transfer, "to_host", allowed)
    session.latents(call=watched)
    made = lightint_compile.decisions(session.compiled)
    assert len(waits) == len(made) - 1 + sum(len(each.reused_steps) for each in made)
