"""A memory of single frames of which some are left out: the rest computes what it would without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from differential import rewritten, trace
from frame_memory_world import FrameMemoryWorld, arguments, turning, video_frames, walking
from quick_variants import mostly_slow
from torch import Tensor, nn

import lightint_compile
from lightint_compile.models.matrix_game import actions, clip
from lightint_compile.models.registry import world_model
from lightint_compile.passes.ir.decision_points import PLAN
from lightint_compile.passes.pipeline import PipelineResult

CHUNKS = 7
BACK_AND_FORTH = turning([0.0] + [5.0] * 44 + [-5.0] * (video_frames(CHUNKS) - 45))
WALK = walking(video_frames(CHUNKS))
DYNAMIC = {"history": 2, "extrinsics": 1}
PASSES = "hoist-invariants,adaptive-context{rules=published},outline-regions"


def compiled(module: nn.Module, passes: str = PASSES, **more: Any) -> Any:
    torch._dynamo.reset()
    options = {"delegate": "eager", "strict": True, "passes": passes, **more}
    return torch.compile(module, backend="lightint", options=options)


def called(call: Any, given: dict[str, Any], dynamic: dict[str, int] = DYNAMIC) -> Tensor:
    for name, axis in dynamic.items():
        torch._dynamo.mark_dynamic(given[name], axis)
    with torch.no_grad():
        return call(**given)


def test_what_is_left_computes_as_without_the_others() -> None:
    torch.manual_seed(0)
    world, reference = FrameMemoryWorld().eval(), FrameMemoryWorld().eval()
    reference.load_state_dict(world.state_dict())
    quick, places = compiled(world), set()
    for path in (BACK_AND_FORTH, WALK):
        for chunk in range(1, CHUNKS + 1):
            given = arguments(chunk, path)
            result = called(quick, given)
            kept = lightint_compile.decisions(quick)[-1].asked_places
            places.add(kept)
            reference.places = list(kept)
            with torch.no_grad():
                expected = reference(**given)
            assert torch.allclose(result, expected, rtol=1e-5, atol=1e-5), (chunk, kept)
    assert places >= {(2,), (0, 1, 2)}, "one frame is kept, and all are"


def test_one_program_serves_every_number_of_frames() -> None:
    torch._dynamo.utils.counters.clear()
    quick = compiled(FrameMemoryWorld().eval())
    kept = []
    for chunk in range(1, CHUNKS + 1):
        called(quick, arguments(chunk, BACK_AND_FORTH))
        kept.append(len(lightint_compile.decisions(quick)[-1].asked_places))
    assert len({*kept}) > 1 and torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


class Across(FrameMemoryWorld):
    """One edit away: ``change`` is made to the memory, [1, C, M, h, w], before it is looked at."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change, inner = change, self.network.forward

        def changed(latents: Tensor, memory: Tensor, *more: Any) -> Tensor:
            return inner(latents, self.change(memory), *more)

        self.network.forward = changed


class Shown(FrameMemoryWorld):
    """It also gives what it remembers."""

    def forward(self, noise: Tensor, history: Tensor, extrinsics: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        inner, seen = self.network.forward, []

        def shown(latents: Tensor, memory: Tensor, *more: Any) -> Tensor:
            seen.append(memory)
            return inner(latents, memory, *more)

        self.network.forward = shown
        made = super().forward(noise, history, extrinsics)
        self.network.forward = inner
        return made, seen[0] * 2


REFUSED: dict[str, tuple[FrameMemoryWorld, str]] = {
    "mean": (Across(lambda memory: memory - memory.mean(2, keepdim=True)), "looks across the frames of the memory"),
    "sum before": (Across(lambda memory: memory.cumsum(2)), "does not treat the frames of the memory one by one"),
    "order": (Across(lambda memory: memory.flip(2)), "does not treat the frames of the memory one by one"),
    "two orders": (Across(lambda memory: memory + memory.transpose(2, 4).transpose(2, 4).roll(1, 2)), "one by one"),
    "first": (Across(lambda memory: memory + memory[:, :, :1]), "does not treat the frames of the memory one by one"),
    "one": (Across(lambda memory: memory + memory.select(2, 0).unsqueeze(2)), "takes one frame of the memory"),
    "beside": (
        Across(lambda memory: memory.flatten(2)[:, :, : 3 * 6].unflatten(2, (2, 9)).flatten(2).unflatten(2, (3, 2, 3))),
        "cuts its operand beside the frames of the memory",
    ),
    "result": (Shown(), "a result has values for every frame of the memory"),
}


def told(result: PipelineResult) -> list[str]:
    return [remark.message for remark in result.remarks if remark.pass_name == "adaptive-context"]


QUICK = {"mean", "sum before", "one", "beside", "result"}


@pytest.mark.parametrize("name", mostly_slow(REFUSED, quick=QUICK))
def test_what_looks_across_frames_keeps_them_all_and_says_why(name: str) -> None:
    world, why = REFUSED[name]
    program = trace(world.eval(), arguments(3, BACK_AND_FORTH), dynamic=DYNAMIC)
    copy, result = rewritten(program, "adaptive-context")
    (message,) = told(result)
    assert message.startswith("the number of remembered frames stays as it is") and why in message
    assert copy.graph_module.code == program.graph_module.code and PLAN not in dict(copy.graph_module.named_children())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrix_game_computes_as_with_those_frames_alone(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The released rules along a turn: one frame of five, then all; the reference has no others in its memory."""
    model = world_model("matrix-game:tiny")
    module, reference = model.module(dtype=dtype), model.module(dtype=dtype)
    quick = compiled(
        module, "canonicalize-attention,distinct-rows,sink-row-repeats,hoist-invariants,dead-tail," + PASSES
    )
    kept: list[tuple[int, ...]] = []

    def both(*args: Any) -> Tensor:
        with torch.no_grad():
            result = quick(*args)
            made = lightint_compile.decisions(quick)
            if args[1] is None:
                return result
            kept.append(made[-1].asked_places)
            _only(monkeypatch, list(kept[-1]))
            expected = reference(*args)
            monkeypatch.undo()
        bound = 1e-5 if dtype is torch.float32 else 2e-2
        assert float((result - expected).abs().max() / expected.abs().max()) < bound, kept
        return result

    for _ in model.rollout(both, model.scene(dtype=dtype), model.camera_path("left-44,right-30")):
        pass
    assert (4,) in kept and (0, 1, 2, 3, 4) in kept


def _only(monkeypatch: pytest.MonkeyPatch, places: list[int]) -> None:
    """Matrix-Game with the frames at some places of its memory, which keep their positions."""
    chosen, asking, table = clip.remembered, clip.reference_poses, actions.axis_table
    monkeypatch.setattr(clip, "remembered", lambda config, poses: chosen(config, poses)[places])
    monkeypatch.setattr(clip, "reference_poses", lambda config, poses: asking(config, poses)[:, places])

    def placed(config: Any, frames: Tensor, dtype: torch.dtype) -> Any:
        return table(config, torch.cat([torch.tensor(places), frames[len(places) :]]), dtype)

    monkeypatch.setattr(actions, "axis_table", placed)
