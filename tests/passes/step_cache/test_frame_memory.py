"""Decisions in a world that remembers single frames and is told a camera for every frame of the video."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from differential import rewritten, trace
from frame_memory_world import MEMORY, FrameMemoryWorld, arguments, turning, video_frames, walking
from torch import Tensor

import lightint_compile
from lightint_compile.passes.analysis.cameras import camera_input
from lightint_compile.passes.analysis.coming_frames import coming_frames
from lightint_compile.passes.analysis.frame_memory import find_frame_memory
from lightint_compile.passes.ir.decision_points import PLAN, PlanPoint, point_from
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.passes.ir.frame_numbers import Coming
from lightint_compile.passes.ir.program import Program

CHUNKS = 7
BACK_AND_FORTH = turning([0.0] + [5.0] * 44 + [-5.0] * (video_frames(CHUNKS) - 45))
DYNAMIC = {"history": 2, "extrinsics": 1}


@pytest.fixture(autouse=True)
def weights() -> None:
    """Whether a first block drifts depends on the weights."""
    torch.manual_seed(0)


def traced(world: FrameMemoryWorld) -> Program:
    return trace(world.eval(), arguments(3, BACK_AND_FORTH), dynamic=DYNAMIC)


@pytest.fixture(scope="module")
def program() -> Program:
    return traced(FrameMemoryWorld())


def test_what_comes_is_behind_the_known_frames_one_camera_in_four(program: Program) -> None:
    cameras = camera_input(program)
    coming = coming_frames(program, cameras)
    assert isinstance(coming, Coming) and (coming.count, coming.step) == (3, 4)
    assert coming.is_last(cameras.meta["val"].shape[1].node.expr)


def test_the_memory_is_found_with_what_asks_for_it(program: Program) -> None:
    cameras = camera_input(program)
    memory = find_frame_memory(program, cameras, coming_frames(program, cameras))
    assert (memory.frames, memory.asked_every, memory.continued) == (MEMORY, 1, 2)
    assert memory.history.name == "history"


@pytest.mark.parametrize("change", [{"pinned": None}, {"asks": 3}])
def test_no_such_memory(change: dict[str, Any]) -> None:
    """Nothing is always remembered; the frames that ask are no latent frames."""
    program = traced(FrameMemoryWorld(**change))
    cameras = camera_input(program)
    coming = coming_frames(program, cameras)
    assert not isinstance(coming, Coming) or find_frame_memory(program, cameras, coming) is None


def test_another_frame_is_remembered_and_another_view_is_stated() -> None:
    """The plan takes the frame from the program and the view from the options."""
    program = traced(FrameMemoryWorld(pinned=2))
    copy, _ = rewritten(program, "outline-regions,step-cache{fov=60x40,view_depth=12}")
    policy = copy.graph_module.get_submodule(PLAN).spec.policy
    assert (policy.pinned, policy.fov, policy.view_depth) == (2, (60.0, 40.0), 12.0)


def test_the_plan_is_told_the_world(program: Program) -> None:
    copy, result = rewritten(program, "hoist-invariants,outline-regions,step-cache{rules=published}")
    world = {"chunk": 3, "clip": 1, "denoising_steps": 3, "memory": MEMORY + 2, "recent": 2, "goes_on": True}
    seen = {"asked_every": 1, "fov": (90.0, 90.0), "view_depth": 30.0}
    expected = PlanPoint(Policy(rules="published", steps=(1,), **world, **seen), cameras=4)
    spec = copy.graph_module.get_submodule(PLAN).spec
    assert spec == expected == point_from(json.loads(json.dumps(spec.to_dict())))
    assert {remark.rule for remark in result.remarks if remark.pass_name == "step-cache"} == {"hold", "extrapolate"}


PUBLISHED = "step-cache{rules=published,drift=none,strategy=hold}"
WALK = walking(video_frames(CHUNKS))
RETURNS = [False, False, True, True, True, False, False]


def compiled_world(world: FrameMemoryWorld, cache: str) -> Any:
    torch._dynamo.reset()
    options = {"delegate": "eager", "strict": True, "passes": f"hoist-invariants,outline-regions,{cache}"}
    return torch.compile(world, backend="lightint", options=options)


def rolled(compiled: Any, path: Tensor, chunks: int = CHUNKS) -> tuple[list[bool], list[Tensor]]:
    """Whether each chunk may reuse a step, and its latents."""
    latents = []
    for chunk in range(1, chunks + 1):
        given = arguments(chunk, path)
        for name, axis in DYNAMIC.items():
            torch._dynamo.mark_dynamic(given[name], axis)
        with torch.no_grad():
            latents.append(compiled(**given))
    return [bool(each.reused_steps) for each in lightint_compile.decisions(compiled) if each.chunk], latents


@pytest.mark.parametrize(("cache", "walks"), [(PUBLISHED, True), ("step-cache", False)], ids=["published", "adaptive"])
def test_gates_along_a_path(cache: str, walks: bool) -> None:
    """The camera turns right by 220 degrees, and left again further than it came from; and it walks straight on."""
    world = FrameMemoryWorld().eval()
    compiled = compiled_world(world, cache)
    for path, gates in ((BACK_AND_FORTH, RETURNS), (WALK, [walks] * CHUNKS)):
        made, latents = rolled(compiled, path)
        assert made == gates
        for chunk, (reuses, result) in enumerate(zip(made, latents, strict=True), 1):
            with torch.no_grad():
                exact = world(**arguments(chunk, path))
            assert torch.allclose(result, exact, rtol=1e-5, atol=1e-6) is not reuses


def test_a_reused_step_goes_on_from_the_prediction_that_is_held() -> None:
    world = FrameMemoryWorld().eval()
    (reuses,), (result,) = rolled(compiled_world(world, PUBLISHED), WALK, 1)
    held, network = [], world.network.forward

    def holding(*args: Any) -> Tensor:
        held.append(network(*args) if len(held) != 1 else held[0])
        return held[-1]

    world.network.forward = holding
    with torch.no_grad():
        expected = world(**arguments(1, WALK))
    assert reuses and len(held) == 3 and torch.allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_cameras_that_are_none_cost_the_saving_and_not_the_result(caplog: pytest.LogCaptureFixture) -> None:
    world = FrameMemoryWorld().eval()
    compiled, given = compiled_world(world, PUBLISHED), arguments(2, WALK)
    given["extrinsics"] = given["extrinsics"].clone()
    given["extrinsics"][:, 8] *= 2  # of a latent frame, and no rigid transform
    with torch.no_grad():
        assert torch.allclose(compiled(**given), world(**given), rtol=1e-5, atol=1e-6)
    assert "nothing is reused" in caplog.text and not lightint_compile.decisions(compiled)
