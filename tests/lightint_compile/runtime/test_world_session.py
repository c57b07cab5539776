"""A rollout of each world model with everything on: one compile, few reads, and exact where guards refuse."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch._dynamo.utils import counters
from world_sessions import Session as WorldSession

import lightint_compile
from lightint_compile.compiled import CompiledGraph
from lightint_compile.errors import StateError
from lightint_compile.models.world_model import turn_and_back
from lightint_compile.passes.ir.remarks import RemarkKind
from lightint_compile.path_decisions import decide
from lightint_compile.runtime import decisions as answers
from lightint_compile.runtime import device_to_host as transfer
from lightint_compile.runtime.device_to_host import to_host

EXACT = "canonicalize-attention,sink-row-repeats,hoist-invariants,dead-tail"
SPARSE = "sparse-attention{density=0.5,context-density=none,min-tokens=0,tile=4x2x2}"
PASSES = {
    "all": f"{EXACT},adaptive-context,{SPARSE},outline-regions,step-cache",
    "kept": f"{EXACT},adaptive-context,context-reuse{{age=4}},{SPARSE},outline-regions,step-cache",
    "sparse": f"{EXACT},{SPARSE},outline-regions",
}


@dataclass(frozen=True)
class Expected:
    """What is particular to a world.

    Attributes:
        chunks: of a rollout in which the camera comes back.
        contexts: numbers of context frames that are chosen in it.
        read: numbers that are read from the device for the decisions of a chunk.
        decided: what the report says is decided, and from what.
        phases: of a later chunk, in the report.
        guarded: steps that may be reused.
        keeps: what the report says of keys and values of context frames that stay.
    """

    chunks: int
    contexts: set[int]
    read: Callable[[int], int]
    decided: tuple[str, ...]
    phases: list[str]
    guarded: list[str]
    keeps: str


WORLDS = {
    "worldplay:tiny": Expected(
        8,
        {4, 8, 12},
        lambda chunk: 16 * 4 * (chunk + 1) + 1 + 9,
        ("context frames and reuse of steps 1, 2", "extrinsics and history"),
        ["decide", "context", "prefill", "step 0", "step 1", "step 2", "step 3"],
        ["step 1", "step 2"],
        "keys and values of context frames are kept for at most 4 chunks",
    ),
    "matrix-game:tiny": Expected(
        6,
        {5, 9},
        lambda chunk: 16 * (57 + 40 * chunk) + 1,
        ("context frames and reuse of steps 1", "from extrinsics and history"),
        ["decide", "context", "step 0", "step 0", "step 1", "step 2"],
        ["step 1"],
        "no attention reads keys or values that are a projection of the context's tokens",
    ),
}
"""Cameras are read, one number about the latents, and of WorldPlay intrinsics. The first chunk decides nothing."""


class Session(WorldSession):
    """With one of the pipelines above."""

    def __init__(self, world: str, variant: str, device: str = "cpu", alone: bool = True) -> None:
        self.name, self.expected = world, WORLDS[world]
        super().__init__(world, device, chunks=self.expected.chunks, alone=alone, passes=PASSES[variant])


@pytest.fixture(scope="module", params=["worldplay:tiny", pytest.param("matrix-game:tiny", marks=pytest.mark.slow)])
def session(request: pytest.FixtureRequest) -> Session:
    return Session(request.param, "all")


def test_after_warm_up_nothing_breaks_or_compiles_again(session: Session) -> None:
    counters.clear()
    compiled = [graph.driver.compilations for graph in CompiledGraph.of(session.compiled)]
    session.latents()
    assert not counters["graph_break"] and not counters["recompiles"]
    assert counters["stats"]["unique_graphs"] == 0 and counters["stats"]["calls_captured"] == 0
    assert [graph.driver.compilations for graph in CompiledGraph.of(session.compiled)] == compiled
    made = lightint_compile.decisions(session.compiled)
    assert {len(each.context_frames) for each in made} >= session.expected.contexts
    assert any(each.reused_steps for each in made)


def test_decisions_are_those_of_the_rules_along_the_path(session: Session) -> None:
    session.latents()
    made, spec = lightint_compile.decisions(session.compiled)[1:], session.model.spec
    along = decide(turn_and_back(spec, spec.frames(session.expected.chunks)), None, "all", model=session.model)[1:]
    assert [each.reused_steps for each in made] == [each.reused_steps for each in along]
    assert [each.context_frames for each in made] == [each.context_frames for each in along]


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
        assert cameras == session.expected.read(number)
        assert drifts == [1] * len(made.reused_steps)


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
def test_with_keys_and_values_kept_the_host_waits_no_more_often_and_nothing_compiles_again(
    world: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matrix-Game has none that could be kept: its memory and the new frames are one sequence."""
    session, reads = Session(world, "kept", alone=False), []
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
    told = lightint_compile.report(session.compiled).sections[-1].remarks
    (said,) = [each for each in told if each.pass_name == "context-reuse"]
    assert session.expected.keeps in said.message
    assert any(each.kept_frames for each in made) == (said.kind is RemarkKind.APPLIED)
    assert any(each.reused_steps for each in made)
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 0
    assert [graph.driver.compilations for graph in CompiledGraph.of(session.compiled)] == compiled


@pytest.mark.slow
def test_where_every_guard_refuses_nothing_but_sparse_attention_is_left(session: Session) -> None:
    plain = Session(session.name, "sparse", alone=False).latents()
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
    patch.setattr(answers, "relative_change", lambda now, before, group: torch.tensor(float("inf")))
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
    order = session.expected.phases
    assert [phase for phase in phases if phase in order] == order and len(phases) <= 13
    said = dict(section.runs)
    assert all(each in said["decide"] for each in session.expected.decided)
    guarded = [phase for phase, text in section.runs if "[if reused and the first block drifted" in text]
    assert guarded == session.expected.guarded
    assert "block_" in said["step 0"] and all("block_" in said[each] for each in order[-1:])
    regions = {phase for phase, _ in section.runs} - set(phases)
    named = " ".join(text for phase, text in section.runs if phase in phases)
    assert all(region in named for region in regions)
    first = f"  what runs\n    decide       {session.expected.decided[0][:14]}"
    assert first in str(lightint_compile.report(session.compiled))


def test_another_scene_and_prompt_start_afresh(session: Session) -> None:
    alone = session.latents()
    lightint_compile.reset(session.compiled)
    first, scene = list(session.rollout()), session.scene
    session.scene = session.model.scene(session.device, seed=7)
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
@pytest.mark.parametrize("world", WORLDS)
def test_on_a_gpu_the_driver_waits_for_nothing_else(world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session, waits = Session(world, "all", "cuda"), []

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
    # A chunk without a past has nothing to plan; what it keeps of its inputs may still have to be told apart.
    first = len(waits) - sum(len(each.reused_steps) for each in made) - (len(made) - 1)
    assert first in (0, 1)
