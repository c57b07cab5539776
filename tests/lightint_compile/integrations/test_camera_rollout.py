"""The adapter of pipelines whose ``ar_rollout`` walks along cameras: chunks, context frames and steps are followed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import camera_pipeline as pipelines
import other_package
import pytest
import torch
from torch._dynamo.utils import counters
from toy_world import there_and_back

import lightint_compile
from lightint_compile.acceleration.compiled_call import CompiledCall
from lightint_compile.cli import extending
from lightint_compile.errors import ExtensionError
from lightint_compile.integrations import GROUP
from lightint_compile.integrations.camera_calls import dense_cameras
from lightint_compile.integrations.camera_rollout import _stepped

pytestmark = pytest.mark.usefixtures("one_thread")

FRAMES = 32
CAMERAS = there_and_back(FRAMES).float()
INTRINSICS = torch.eye(3).repeat(1, FRAMES, 1, 1)
LATENTS = torch.randn(1, 4, FRAMES, 2, 2, generator=torch.Generator().manual_seed(2))


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.no_grad():
        yield


def run(pipe: pipelines.CameraPipeline) -> torch.Tensor:
    return pipe(LATENTS, CAMERAS, INTRINSICS)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The calls of transformers that are computed: whether each is a denoising step."""
    calls: list[bool] = []
    run_it = CompiledCall._run

    def counted(call: CompiledCall, *args: Any, **kwargs: Any) -> Any:
        calls.append(not kwargs.get("cache_vision"))
        return run_it(call, *args, **kwargs)

    monkeypatch.setattr(CompiledCall, "_run", counted)
    return calls


@pytest.mark.parametrize("guidance", [False, True])
def test_chunks_context_and_steps_are_those_of_a_rollout_around_the_loop(guidance: bool, computed: list[bool]) -> None:
    pipe = pipelines.CameraPipeline(guidance=guidance)
    own, before, choose = run(pipe), dict(vars(pipe)), pipelines.select_aligned_memory_frames
    with lightint_compile.accelerate(pipe, delegate="eager") as handle:
        result = run(pipe)
        decisions = handle.decisions()
        assert "CameraPipeline.ar_rollout is followed: context frames and reused steps" in str(handle)
    assert [decision.chunk for decision in decisions] == list(range(FRAMES // 4))
    assert pipe.contexts == [list(decision.context_frames) for decision in decisions[1:]]
    reused = sum(len(decision.reused_steps) for decision in decisions)
    assert reused and sum(computed) == (1 + guidance) * (FRAMES // 4 * pipelines.STEPS - reused)
    assert not torch.equal(result, own) and (result - own).abs().max() < 0.5 * own.abs().max()
    assert handle.decisions() == decisions
    assert pipelines.select_aligned_memory_frames is choose
    assert "ar_rollout" not in vars(pipe) and set(vars(pipe)) == set(before)
    torch.testing.assert_close(run(pipe), own)


def test_the_decisions_are_those_of_the_guides_recipe() -> None:
    pipe = pipelines.CameraPipeline()
    with lightint_compile.accelerate(pipe, delegate="eager") as handle:
        run(pipe)
    with lightint_compile.rollout(cameras=CAMERAS, intrinsics=INTRINSICS[0]) as alone:
        for chunk in range(FRAMES // 4):
            alone.chunk(chunk)
        wanted = alone.decisions
    assert [(d.context_frames, d.reused_steps) for d in handle.decisions()] == [
        (d.context_frames, d.reused_steps) for d in wanted
    ]


@pytest.mark.parametrize(("preset", "adapts", "reuses"), [("context", True, False), ("cache", False, True)])
def test_a_preset_decides_in_a_loop_what_it_decides_in_a_model(
    preset: str, adapts: bool, reuses: bool, computed: list[bool]
) -> None:
    pipe = pipelines.CameraPipeline()
    run(pipe)
    own = pipe.contexts
    with lightint_compile.accelerate(pipe, preset=preset, delegate="eager") as handle:
        run(pipe)
    assert (pipe.contexts != own) == adapts
    assert (sum(computed) < FRAMES // 4 * pipelines.STEPS) == reuses and len(handle.decisions()) == FRAMES // 4


@pytest.mark.parametrize("preset", ["context", "exact"])
def test_one_program_serves_every_length_of_context_and_of_the_path(preset: str, fresh_dynamo: None) -> None:
    """A step without context, one with it, and what fills the caches: three graphs, none of them compiled twice."""
    pipe = pipelines.CameraPipeline()
    own = run(pipe)
    with lightint_compile.accelerate(pipe, preset=preset, delegate="eager"):
        before = counters["stats"]["unique_graphs"]
        result = run(pipe)
        pipe(LATENTS[:, :, :20], CAMERAS[:, :20], INTRINSICS[:, :20])
        assert counters["stats"]["unique_graphs"] - before == 3
    if preset == "exact":
        torch.testing.assert_close(result, own)


def test_only_cameras_that_do_not_lie_densely_are_copied() -> None:
    dense, cut, one = CAMERAS.clone(), CAMERAS[:, 4:8], torch.eye(3).expand(1, 4, 3, 3)
    given = {"viewmats": cut, "Ks": one, "action": dense, "hidden_states": cut}
    dense_cameras(given)
    assert given["action"] is dense and given["hidden_states"] is cut
    assert given["viewmats"].stride() == (64, 16, 4, 1) and given["Ks"].stride() == (36, 9, 3, 1)
    assert torch.equal(given["viewmats"], cut) and torch.equal(given["Ks"], one)


def test_what_the_user_names_symbolic_stays_so() -> None:
    config = torch.compiler.config
    with config.patch(dynamic_sources="L['mine']"):
        named = _stepped(lambda: _stepped(lambda: config.dynamic_sources, {}), {})
        assert named.startswith("L['mine'],") and named.count("rope_temporal_size") == 1
        assert config.dynamic_sources == "L['mine']"


def test_counts_are_symbolic_in_whichever_thread_calls() -> None:
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.append(_stepped(lambda: torch.compiler.config.dynamic_sources, {})))
    with lightint_compile.accelerate(pipelines.CameraPipeline(), delegate="eager"):
        thread.start()
        thread.join()
    assert "start_rope_start_idx" in seen[0] and "rope" not in torch.compiler.config.dynamic_sources


@pytest.mark.parametrize("options", [{"preset": "exact"}, {"preset": "sparse"}, {"max_relative_error": 0.05}])
def test_what_keeps_the_loop_leaves_it_alone(options: dict[str, Any]) -> None:
    pipe = pipelines.CameraPipeline()
    choose = pipelines.select_aligned_memory_frames
    with lightint_compile.accelerate(pipe, delegate="eager", **options) as handle:
        assert "ar_rollout" not in vars(pipe) and pipelines.select_aligned_memory_frames is choose
        assert handle.decisions() == [] and "followed" not in str(handle)


def test_two_pipelines_in_two_threads_have_rollouts_of_their_own() -> None:
    pipes = [pipelines.CameraPipeline(), pipelines.CameraPipeline()]
    choose = pipelines.select_aligned_memory_frames
    handles = [lightint_compile.accelerate(pipe, preset="context", delegate="eager") for pipe in pipes]
    results: dict[int, torch.Tensor] = {}

    def rolled(number: int) -> None:
        with torch.no_grad():
            results[number] = run(pipes[number])

    rolled(0)
    first = results[0].clone()
    threads = [threading.Thread(target=rolled, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        torch.testing.assert_close(results[number], first)
    handles[0].undo()
    assert pipelines.select_aligned_memory_frames is not choose
    run(pipes[1])
    assert len(handles[1].decisions()) == FRAMES // 4
    handles[1].undo()
    assert pipelines.select_aligned_memory_frames is choose


def test_an_error_in_the_loop_comes_through_and_ends_the_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipelines.CameraPipeline()
    with lightint_compile.accelerate(pipe, preset="context", delegate="eager"):
        with pytest.raises(lightint_compile.LightintError, match="whole number of chunks"):
            pipe(LATENTS, CAMERAS[:, :30], INTRINSICS)
        assert pipelines.select_aligned_memory_frames(None, 8, memory_frames=4) == [4, 5, 6, 7]
        run(pipe)


ADAPTER = """
class Loop:
    what = "the pipeline's loop is followed by another package"
    decisions = []
    def undo(self):
        self.undone = True

def install(pipeline, calls, rules):
    return Loop() if hasattr(pipeline, "mine") else None
"""


def test_another_package_brings_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {GROUP: {"mine": "loops_of_mine:install"}}
    other_package.install(tmp_path, monkeypatch, "loops-of-mine", {"loops_of_mine.py": ADAPTER}, entry)
    pipe: Any = type("Mine", (), {})()
    pipe.transformer, pipe.mine = pipelines.Transformer(), True
    with lightint_compile.accelerate(pipe, delegate="eager") as handle:
        assert "followed by another package" in str(handle)


@pytest.mark.parametrize(
    ("value", "why"), [("loops_of_nobody:install", "cannot be imported"), ("broken_loops:install", "no adapter")]
)
def test_a_broken_adapter_is_one_clear_error_and_nothing_stays(
    value: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"broken_loops.py": "install = 1"}
    other_package.install(tmp_path, monkeypatch, "broken-loops", files, {GROUP: {"broken": value}})
    pipe: Any = type("Mine", (), {})()
    pipe.transformer = pipelines.Transformer()
    before = dict(vars(pipe.transformer))
    with pytest.raises(ExtensionError, match=why):
        lightint_compile.accelerate(pipe)
    told = [found for _, found in extending.ADAPTER.found()]
    assert len(told) == 1 and isinstance(told[0], ExtensionError)
    assert vars(pipe.transformer) == before
