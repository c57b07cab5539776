"""The adapter of pipelines whose ``generate`` makes clip after clip with single frames of the past."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import clip_pipeline as pipelines
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import lightint_compile
from lightint_compile.acceleration.compiled_call import CompiledCall
from lightint_compile.models.registry import world_model
from lightint_compile.path_decisions import decide

pytestmark = pytest.mark.usefixtures("one_thread")

PATH, STEPS = "left-44,right-20", 3
MODEL: Any = world_model("matrix-game:tiny")
"""The world whose lengths the pipeline has; cameras of its paths are moved by keys."""

CLIPS = 6


def poses(path: str = PATH) -> Tensor:
    """Camera-to-world of all frames of the video."""
    return torch.linalg.inv(MODEL.camera_path(path).video_extrinsics.double())


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The calls of models that are computed: how many frames each remembers."""
    calls: list[int] = []
    run_it = CompiledCall._run

    def counted(call: CompiledCall, *args: Any, **kwargs: Any) -> Any:
        memory = kwargs.get("x_memory")
        calls.append(0 if memory is None else memory.shape[2])
        return run_it(call, *args, **kwargs)

    monkeypatch.setattr(CompiledCall, "_run", counted)
    return calls


def told(decisions: list[Any]) -> list[Any]:
    return [(each.chunk, each.context_frames, each.asked_places, each.reused_steps) for each in decisions]


@pytest.mark.parametrize("preset", [pytest.param("published", marks=pytest.mark.slow), "all"])
def test_clips_are_decided_as_the_command_line_says(preset: str, computed: list[int]) -> None:
    pipe = pipelines.ClipPipeline(poses())
    own, choose, before = pipe.generate("", STEPS), pipelines.select_memory_idx_fov, set(vars(pipe))
    with lightint_compile.accelerate(pipe, preset=preset, delegate="eager") as handle:
        result = pipe.generate("", num_inference_steps=STEPS)
        decisions = handle.decisions()
        assert "ClipPipeline.generate is followed: context frames and reused steps" in str(handle)
    assert told(decisions) == told(decide(PATH, None, preset, model=MODEL))
    reused = [len(each.reused_steps) for each in decisions]
    kept = [0 if each.asked_places is None else len(each.asked_places) for each in decisions]
    assert computed == [count for count, fewer in zip(kept, reused, strict=True) for _ in range(STEPS - fewer)]
    assert len(decisions) == CLIPS and sum(reused) and 1 in kept and pipelines.MEMORY in kept
    assert result.shape == own.shape and torch.isfinite(result).all() and not torch.equal(result, own)
    assert handle.decisions() == decisions
    assert pipelines.select_memory_idx_fov is choose and set(vars(pipe)) == before
    torch.testing.assert_close(pipe.generate("", STEPS), own)


def test_each_half_of_guidance_is_reused_by_itself(computed: list[int]) -> None:
    pipe = pipelines.ClipPipeline(poses())
    with lightint_compile.accelerate(pipe, preset="published", delegate="eager") as handle:
        pipe.generate("", STEPS, use_base_model=True)
        reused = sum(len(each.reused_steps) for each in handle.decisions())
    assert reused and len(computed) == 2 * (CLIPS * STEPS - reused)


@pytest.mark.parametrize(("preset", "adapts", "reuses"), [("context", True, False), ("cache", False, True)])
def test_a_preset_decides_in_a_loop_what_it_decides_in_a_model(
    preset: str, adapts: bool, reuses: bool, computed: list[int]
) -> None:
    pipe = pipelines.ClipPipeline(poses())
    with lightint_compile.accelerate(pipe, preset=preset, delegate="eager"):
        pipe.generate("", STEPS)
    assert (set(computed) != {0, pipelines.MEMORY}) == adapts and (len(computed) < CLIPS * STEPS) == reuses


def test_one_program_serves_every_number_of_remembered_frames(computed: list[int], fresh_dynamo: None) -> None:
    pipe = pipelines.ClipPipeline(poses())
    with lightint_compile.accelerate(pipe, preset="context", delegate="eager"):
        pipe.generate("", STEPS)
    assert len(set(computed)) > 2
    assert counters["stats"]["unique_graphs"] <= 3


def test_a_long_schedule_reuses_the_steps_that_other_loops_do(computed: list[int]) -> None:
    pipe = pipelines.ClipPipeline(poses("w-24"))
    with lightint_compile.accelerate(pipe, preset="published", delegate="eager") as handle:
        pipe.generate("", 12)
    assert [each.reused_steps for each in handle.decisions()] == [(), (1, 2)] and len(computed) == 22


def test_mirrored_cameras_and_a_path_that_grows_are_decided_alike() -> None:
    wanted = decide(PATH, None, "published", model=MODEL)
    mirrored = poses() @ torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64))

    class Growing(pipelines.ClipPipeline):
        """It knows the cameras up to the end of the clip, as where a person steers."""

        def _given(self, draw: torch.Generator, past: Tensor | None, start: int, end: int) -> dict[str, Any]:
            whole, self.poses = self.poses, self.poses[:end]
            try:
                return super()._given(draw, past, start, end)
            finally:
                self.poses = whole

    for pipe in (pipelines.ClipPipeline(mirrored), Growing(poses())):
        with lightint_compile.accelerate(pipe, preset="published", delegate="eager") as handle:
            pipe.generate("", STEPS)
        assert told(handle.decisions()) == told(wanted)


@pytest.mark.parametrize("options", [{"preset": "exact"}, {"max_relative_error": 0.05}])
def test_what_keeps_the_loop_leaves_it_alone(options: dict[str, Any], fresh_dynamo: None) -> None:
    pipe, choose = pipelines.ClipPipeline(poses("left-34")), pipelines.select_memory_idx_fov
    own = pipe.generate("", STEPS)
    with lightint_compile.accelerate(pipe, delegate="eager", **options) as handle:
        assert "generate" not in vars(pipe) and pipelines.select_memory_idx_fov is choose
        torch.testing.assert_close(pipe.generate("", STEPS), own)
        assert handle.decisions() == [] and "followed" not in str(handle)
        assert not counters["graph_break"] and counters["stats"]["unique_graphs"] <= 3


def test_an_error_in_the_loop_comes_through_and_ends_the_rollout() -> None:
    pipe = pipelines.ClipPipeline(poses()[:120])
    with lightint_compile.accelerate(pipe, preset="published", delegate="eager"):
        with pytest.raises(lightint_compile.LightintError, match="whole number of chunks"):
            pipe.generate("", STEPS)
        pipe.poses = poses("w-24")
        pipe.generate("", STEPS)
        assert pipelines.select_memory_idx_fov(None, 21, [1, 2]) == [1, 11]
