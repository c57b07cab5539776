"""Loops seen from outside: which steps are reused, with what, and that any call which does not fit is computed."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable

import pytest
import torch
from step_world import FRAMES, SEEN, SIGMAS, Rollout, StepWorld
from torch import Tensor
from toy_world import CHUNK, there_and_back, walk

import lightint_compile
from lightint_compile.compiled import CompiledGraph
from lightint_compile.passes.ir.decision_points import VisitPoint
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.runtime import visits
from lightint_compile.runtime.camera_path import continued
from lightint_compile.runtime.content_check import Watch
from lightint_compile.runtime.followed_loop import FollowedPlanner, Schedule
from lightint_compile.runtime.planner import plan
from lightint_compile.runtime.rules import AdaptiveRules

COMPUTED = [True] * 4
REUSED = [True, False, False, True]


class Compiled:
    """A compiled step, and one beside it that is not."""

    def __init__(self, **options: object) -> None:
        torch.manual_seed(0)
        self.model = StepWorld().eval()
        settings = {"preset": "cache", "delegate": "eager", "strict": True, **options}
        self.compiled = torch.compile(self.model, backend="lightint", options=settings)
        Rollout(self.compiled, self.model).chunk(0)

    def rollout(self, cameras: Tensor | None = None) -> Rollout:
        lightint_compile.reset(self.compiled)
        return Rollout(self.compiled, self.model, cameras)

    @property
    def planner(self) -> FollowedPlanner:
        """Of the graph that was called last with these sizes: others may have been compiled beside it."""
        drivers = [graph.driver for graph in CompiledGraph.of(self.compiled) if graph.driver is not None]
        planners = [driver.decisions.planner_of(self.model.parameters()) for driver in drivers]
        return next(planner for planner in planners if isinstance(planner, FollowedPlanner))


@pytest.fixture(scope="module")
def world() -> Compiled:
    return Compiled()


def test_a_loop_outside_is_decided_as_one_inside(world: Compiled) -> None:
    rollout = world.rollout()
    computed = [rollout.chunk(number) for number in range(FRAMES // CHUNK)]
    decided = lightint_compile.decisions(world.compiled)
    expected = plan(rollout.cameras[0], AdaptiveRules(steps=(1, 2)))
    assert [(each.chunk, each.reused_steps, each.overlap) for each in decided] == [
        (each.chunk, each.reused_steps, each.overlap) for each in expected
    ]
    assert [steps == REUSED for steps in computed] == [bool(each.reused_steps) for each in expected]
    assert sum(steps == REUSED for steps in computed) == 4
    assert all(len(each.drifts) == len(each.reused_steps) and not each.refused_steps for each in decided)


def test_a_reused_step_is_the_line_through_what_was_computed() -> None:
    world = Compiled(drift=1e9)
    rollout = world.rollout().walk()
    rollout.chunk(SEEN)
    held = rollout.results
    assert torch.equal(held[1], held[0]) and torch.equal(held[2], held[0]), "of one computed step nothing but itself"
    hold = Compiled(drift=1e9, passes="outline-regions,step-cache{strategy=hold,drift=1e9}")
    again = hold.rollout().walk()
    again.chunk(SEEN)
    assert torch.equal(again.results[1], again.results[0])


def test_two_computed_steps_are_extrapolated_in_the_timestep(world: Compiled) -> None:
    rollout = world.rollout().walk()
    text = rollout.text

    def refuse_the_first(step: int) -> None:
        rollout.text = text + step if step == 1 else text

    assert rollout.chunk(SEEN, refuse_the_first) == [True, True, False, True]
    latest = rollout.results[0]
    assert torch.equal(rollout.results[2], latest), "step 1 had another prompt: it is no point of the line"


def test_drift_refuses_a_step() -> None:
    strict = Compiled(drift=0.0)
    rollout = strict.rollout().walk()
    assert rollout.chunk(SEEN) == COMPUTED
    latest = lightint_compile.decisions(strict.compiled)[-1]
    assert latest.reused_steps == latest.refused_steps == (1, 2)


def test_the_device_is_read_once_a_chunk_and_once_a_guarded_step(
    world: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    plain = visits.transfer.together

    def counted(parts: list[Tensor]) -> list[Tensor]:
        reads.append(len(parts))
        return plain(parts)

    rollout = world.rollout()
    monkeypatch.setattr(visits.transfer, "together", counted)
    counts = []
    for number in range(FRAMES // CHUNK):
        before = len(reads)
        rollout.chunk(number)
        counts.append(len(reads) - before)
    assert counts == [1] * SEEN + [3] * 4 + [1]


Change = Callable[[Compiled, Rollout], None]


def other_text(world: Compiled, rollout: Rollout) -> None:
    rollout.text = rollout.text + 1e-3


def text_in_place(world: Compiled, rollout: Rollout) -> None:
    rollout.text.data.add_(1e-3)


def weights(world: Compiled, rollout: Rollout) -> None:
    world.model.blocks[2].out.weight.data.mul_(1.001)


def other_cameras(world: Compiled, rollout: Rollout) -> None:
    rollout.cameras = rollout.cameras.clone()
    rollout.cameras[..., :3, 3] += 1e-3


@pytest.mark.parametrize("change", [other_text, text_in_place, weights, other_cameras])
@pytest.mark.parametrize("at", [1, 2])
def test_a_call_that_is_given_something_else_computes(world: Compiled, change: Change, at: int) -> None:
    rollout = world.rollout().walk()
    state = {name: value.clone() for name, value in world.model.state_dict().items()}
    computed = rollout.chunk(SEEN, lambda step: change(world, rollout) if step == at else None)
    world.model.load_state_dict(state)
    if at == 2:
        assert computed == [True, False, True, True]
    else:
        assert computed == (COMPUTED if change is other_cameras else [True, True, False, True])


def test_equal_content_in_other_tensors_is_the_same_call(world: Compiled) -> None:
    rollout = world.rollout().walk()

    def moved(step: int) -> None:
        rollout.text, rollout.cameras = rollout.text.clone(), rollout.cameras.clone()

    assert rollout.chunk(SEEN, moved) == REUSED


def test_the_halves_of_guidance_follow_their_own_predictions(world: Compiled) -> None:
    rollout = world.rollout()
    texts = rollout.text, torch.zeros_like(rollout.text)
    for number in range(SEEN):
        assert all(rollout.chunk(number, texts=texts))
    assert rollout.chunk(SEEN, texts=texts) == [True, True, False, False, False, False, True, True]
    first, second = rollout.results[:2], rollout.results[2:4]
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1]) and not torch.equal(*first)


def test_steps_out_of_order_compute(world: Compiled) -> None:
    rollout = world.rollout().walk()
    latents, views = torch.randn(1, 4, CHUNK, 4, 6), rollout.views(SEEN)
    times = (1000.0, 937.5, 937.5, 900.0, 1000.0, 833.3, 625.0)
    computed = [rollout.call(latents, time, views, rollout.text)[1] for time in times]
    assert computed == [True, False, True, True, True, True, True], "until a step comes twice"
    computed = [rollout.call(latents, time, views, rollout.text)[1] for time in (1000.0, 833.3, 937.5, 625.0)]
    assert computed == COMPUTED


def test_a_longer_loop_than_before_reuses_what_it_has_in_common(world: Compiled) -> None:
    rollout = world.rollout().walk()
    views = rollout.views(SEEN)
    latents = torch.randn(1, 4, CHUNK, 4, 6)
    times = [1000 * sigma for sigma in SIGMAS[:-1]] + [300.0, 100.0]
    computed = [rollout.call(latents + time / 1e4, time, views, rollout.text)[1] for time in times]
    assert computed[0] and all(computed[3:]), "what was the last step, and all behind it"


def test_an_exception_in_mid_chunk_and_the_chunk_again(world: Compiled) -> None:
    rollout = world.rollout().walk()

    class StopError(Exception):
        pass

    def stop(step: int) -> None:
        if step == 2:
            raise StopError

    with pytest.raises(StopError):
        rollout.chunk(SEEN, stop)
    assert rollout.chunk(SEEN) == REUSED
    assert rollout.chunk(SEEN + 1) == REUSED


def test_another_thread_begins_a_rollout_of_its_own(world: Compiled) -> None:
    rollout = world.rollout().walk()
    found: list[list[bool]] = []
    thread = threading.Thread(target=lambda: found.append(rollout.chunk(SEEN)))
    thread.start()
    thread.join()
    assert found == [COMPUTED]


def test_another_mode_begins_a_rollout_of_its_own(world: Compiled) -> None:
    rollout = world.rollout().walk()
    with torch.inference_mode():
        assert rollout.chunk(SEEN) == COMPUTED


def test_inside_of_a_rollout_of_the_callers_nothing_is_followed(world: Compiled) -> None:
    rollout = world.rollout().walk()
    with lightint_compile.rollout(cameras=there_and_back(FRAMES)):
        assert rollout.chunk(SEEN) == COMPUTED


def test_poses_that_begin_at_the_origin_in_every_chunk_are_no_path(world: Compiled) -> None:
    path = there_and_back(FRAMES)
    relative = [chunk @ torch.linalg.inv(chunk[:, :1]) for chunk in path.split(CHUNK, 1)]
    rollout = world.rollout(torch.cat(relative, 1))
    assert all(rollout.chunk(number) == COMPUTED for number in range(FRAMES // CHUNK))


def test_a_cut_to_another_scene_begins_a_path(world: Compiled) -> None:
    rollout = world.rollout().walk(6)
    rollout.cameras = walk(FRAMES, 10.0, 0.5).flip(1)
    rollout.chunk(6)
    assert lightint_compile.decisions(world.compiled)[-1].chunk == 0


def test_nothing_of_a_chunk_is_held_behind_its_last_step(world: Compiled) -> None:
    rollout = world.rollout().walk()
    assert rollout.chunk(SEEN) == REUSED
    chunk = world.planner.loop._chunk
    assert chunk is not None and not chunk.kept
    assert not any(visit.first is not None or visit.keeps for visit in world.planner.loop._unread)


def test_exact_presets_follow_nothing() -> None:
    exact = Compiled(preset="exact")
    rollout = exact.rollout().walk()
    assert rollout.chunk(SEEN) == COMPUTED
    assert not lightint_compile.decisions(exact.compiled)


def test_an_error_budget_follows_nothing() -> None:
    budget = Compiled(preset="cache", max_relative_error=0.5, strict=False)
    rollout = budget.rollout().walk()
    assert rollout.chunk(SEEN) == COMPUTED


def test_a_schedule_is_what_every_step_of_a_chunk_was_asked_as_often() -> None:
    assert Schedule.of([3.0, 2.0, 1.0]) == Schedule((3.0, 2.0, 1.0), 1)
    assert Schedule.of([3.0, 3.0, 2.0, 2.0, 1.0, 1.0]) == Schedule((3.0, 2.0, 1.0), 2)
    assert not Schedule.of([3.0, 3.0, 2.0, 1.0]) and not Schedule.of([3.0, 2.0])
    assert Schedule.of([4.0, 3.0, 2.0, 1.0]).interior == (1, 2)


def test_a_path_goes_on_where_the_last_view_is_near() -> None:
    path = walk(8).double()
    assert continued(path[:, :4], path[:, 4:], torch.float32).shape[1] == 8
    assert continued(None, path, torch.float32) is path
    assert continued(path, path[:, 4:], torch.float32) is path, "the same chunk again"
    assert continued(path[:, :4], path[:, :4], torch.float32).shape[1] == 4, "it begins where the path began"
    assert continued(path[:, :4], walk(16)[:, 12:].double(), torch.float32).shape[1] == 4, "too far"
    assert continued(path[:, :1], path[:, 1:2], torch.float32).shape[1] == 1, "one view says nothing of steps"


class Calls:
    """Calls of a loop without a model: predictions are what the test says."""

    def __init__(self) -> None:
        policy = Policy(outside=True, fov=(60.0, 35.0))
        self.spec = VisitPoint(policy, None)
        self.planner, self.watch = FollowedPlanner(policy), Watch((0,))
        self.path, self.text = there_and_back(FRAMES).double(), torch.ones(3)
        self.context = self.path[:, :0]

    def call(self, number: int, timestep: Tensor, prediction: float) -> float | None:
        """What a reused step gives; ``None`` where it computes."""
        views = torch.cat([self.context, self.path[:, number * CHUNK : (number + 1) * CHUNK]], 1)
        latent = torch.zeros(1, 4, CHUNK, 4, 6)
        with self.watch.call((self.text,)):
            visit, line = self.planner.loop.visit(self.spec, latent, timestep, views, None, None, self.watch)
        if line is not None:
            return float(line.latest + (line.latest - line.previous) * line.weight)
        if visit is not None:
            self.planner.loop.predicted(visit, torch.tensor(prediction, dtype=torch.float64))
        return None

    def chunk(self, number: int, times: list[Tensor]) -> list[float | None]:
        return [self.call(number, time, float(time.max()) ** 2) for time in times]


def test_clean_frames_have_a_timestep_of_their_own() -> None:
    """Tokens of a first image stay at 0 while the others fall; a call in which they do not is beside the loop."""
    calls = Calls()
    times = [torch.tensor([[0.0, 0.0, t, t, t]]) for t in (4.0, 3.0, 2.0, 1.0)]
    beside = torch.tensor([[0.0, 1.0, 1.0, 1.0, 1.0]])
    for number in range(SEEN):
        assert calls.chunk(number, [*times, beside]) == [None] * 5
    assert calls.chunk(SEEN, [*times, beside]) == [None, 16.0, 16.0, None, None]
    assert calls.chunk(SEEN + 1, [times[0], beside, *times[1:]]) == [None] * 5, "one in between ends the reuse"


def test_cameras_of_context_in_front_are_none_of_the_chunks() -> None:
    calls = Calls()
    times = [torch.tensor([t]) for t in (4.0, 3.0, 2.0, 1.0)]
    for number in range(SEEN):
        calls.context = calls.path[:, : number * CHUNK]
        assert calls.chunk(number, times) == [None] * 4
    assert calls.chunk(SEEN, times) == [None, 16.0, 16.0, None]


def test_a_refused_step_is_the_second_point_of_the_line() -> None:
    calls = Calls()
    times = [torch.tensor([t]) for t in (5.0, 4.0, 3.0, 2.0, 1.0)]
    for number in range(SEEN):
        calls.chunk(number, times)
    calls.chunk(SEEN, times[:1])
    loop = calls.planner.loop
    assert loop._chunk is not None and loop._chunk.record.decision.reused_steps == (1, 2, 3)
    loop._chunk.record.decision = dataclasses.replace(loop._chunk.record.decision, reused_steps=(2, 3))
    assert calls.chunk(SEEN, times[1:]) == [None, 7.0, -2.0, None], "through 25 at 5 and 16 at 4"


def test_inputs_that_cannot_be_read_are_computed() -> None:
    calls = Calls()
    calls.text = torch.ones(3).to_sparse()
    times = [torch.tensor([t]) for t in (4.0, 3.0, 2.0, 1.0)]
    for number in range(FRAMES // CHUNK):
        assert calls.chunk(number, times) == [None] * 4


def test_cameras_that_are_no_cameras_cost_the_saving_alone(caplog: pytest.LogCaptureFixture) -> None:
    calls = Calls()
    times = [torch.tensor([t]) for t in (4.0, 3.0, 2.0, 1.0)]
    calls.path[:, SEEN * CHUNK] *= 2
    assert [calls.chunk(number, times) for number in range(SEEN + 1)] == [[None] * 4] * (SEEN + 1)
    assert "nothing is reused in this chunk" in caplog.text


@torch.no_grad()
@pytest.mark.parametrize("users", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("swapped", [False, True], ids=["in order", "swapped"])
def test_two_rollouts_in_lockstep_that_are_given_the_same_take_nothing_of_each_other(users: int, swapped: bool) -> None:
    """Two seeds of one prompt along one path: nothing but the latents tells their calls apart."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, cameras, text = StepWorld().eval(), there_and_back(FRAMES), torch.randn(1, 5, 8)
    compiled = torch.compile(model, backend="lightint", options={"preset": "published", "delegate": "eager"})
    for number in range(FRAMES // CHUNK):
        latents = [torch.randn(1, 4, CHUNK, 4, 6) for _ in range(users)]
        views = cameras[:, number * CHUNK : (number + 1) * CHUNK]
        for step, sigma in enumerate(SIGMAS[:4]):
            for user in range(users)[:: -1 if swapped and step % 2 else 1]:
                given = latents[user], torch.full((1,), 1000 * sigma), views, text
                torch.testing.assert_close(compiled(*given), model(*given))
                latents[user] = latents[user] * 0.9
    assert any(decision.refused_steps for decision in lightint_compile.decisions(compiled))
