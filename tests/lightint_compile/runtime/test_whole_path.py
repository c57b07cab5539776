"""A program that gets the whole camera path and a start decides, chunk by chunk, as one that gets the path so far."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toy_world import CHUNK, ToyWorld, there_and_back, toy_rollout, walk

import lightint_compile
from lightint_compile.passes.ir.decision_points import PlanPoint
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.runtime.cameras import view_of
from lightint_compile.runtime.decisions import Decisions
from lightint_compile.runtime.planner import plan
from lightint_compile.runtime.rules import AdaptiveRules, ModelRules, PublishedRules

PATHS = {"back": there_and_back(40), "on": walk(40), "away": walk(40, -8.0, 0.0), "slowly": there_and_back(40, 5.0)}


class WholePath(ToyWorld):
    """Reads the cameras of its chunk at ``start``, and gathers its context among the frames before."""

    def forward(self, noise: Tensor, history: Tensor | None, path: Tensor, start: int) -> Tensor:
        context = None
        if history is not None:
            chosen = self.select(path, history.shape[2])
            context = self.prefill(history.index_select(2, chosen), path.index_select(1, chosen), chosen.shape[0])
        cameras = self.coming(path, start)
        for step in range(self.steps):
            velocity = self.predict(noise, cameras, self.sigmas[step], context)
            noise = noise + velocity * (self.sigmas[step + 1] - self.sigmas[step])
        return noise

    def coming(self, path: Tensor, start: int) -> Tensor:
        return path[:, start : start + CHUNK]


class ByNumbers(WholePath):
    """The same with the numbers of the frames in a tensor."""

    def coming(self, path: Tensor, start: Tensor) -> Tensor:
        return path.index_select(1, start + torch.arange(CHUNK))


class EverySecond(WholePath):
    """Reads every second frame behind the start: which chunk comes cannot be told."""

    def coming(self, path: Tensor, start: int) -> Tensor:
        return path[:, start : start + 2 * CHUNK : 2]


def compiled_of(kind: type[ToyWorld], **options):
    torch._dynamo.reset()
    torch.manual_seed(0)
    return torch.compile(kind(depth=1).eval(), backend="lightint", options={"delegate": "eager", **options})


def whole_rollout(model, path: Tensor, numbered: bool = False, chunks: int = 10) -> list[Tensor]:
    noise = torch.randn(1, 4, path.shape[1], 4, 6, generator=torch.Generator().manual_seed(0))
    buffer, history, found = torch.empty_like(path), None, []
    for first in range(0, CHUNK * chunks, CHUNK):
        buffer.copy_(path)  # the caller's buffer is filled anew for every chunk, and spoiled behind it
        if history is not None:
            torch._dynamo.mark_dynamic(history, 2)
        start = torch.tensor(first) if numbered else first
        with torch.no_grad():
            found.append(model(noise[:, :, first : first + CHUNK].contiguous(), history, buffer, start))
        buffer.zero_()
        history = found[-1].clone() if history is None else torch.cat([history, found[-1]], 2)
    return found


def told(compiled) -> list[dict]:
    return [decision.to_dict() for decision in lightint_compile.decisions(compiled)]


@pytest.mark.parametrize("kind", [WholePath, ByNumbers])
def test_decisions_are_those_of_the_path_so_far(kind) -> None:
    compiled = compiled_of(kind, preset="published")
    for name, path in PATHS.items():
        whole_rollout(compiled, path, kind is ByNumbers)
        assert told(compiled)[1:] == [each.to_dict() for each in plan(path[0], PublishedRules())[1:]], name


def test_latents_are_those_of_the_path_so_far() -> None:
    so_far = toy_rollout(compiled_of(ToyWorld, preset="published"), PATHS["back"])
    whole = whole_rollout(compiled_of(WholePath, preset="published"), PATHS["back"])
    for left, right in zip(whole, so_far, strict=True):
        torch.testing.assert_close(left, right)


def test_what_cannot_be_told_decides_nothing_and_says_why() -> None:
    compiled = compiled_of(EverySecond, preset="published")
    path = torch.cat([PATHS["back"], PATHS["back"][:, -4:]], 1)
    got, exact = (whole_rollout(model, path, chunks=3) for model in (compiled, compiled._orig_mod))
    assert lightint_compile.decisions(compiled) == []
    for left, right in zip(got, exact, strict=True):
        torch.testing.assert_close(left, right)
    missed = {
        remark.pass_name: remark
        for graph in lightint_compile.report(compiled).sections
        for remark in graph.remarks
        if remark.kind == "missed" and remark.pass_name in ("adaptive-context", "step-cache")
    }
    assert set(missed) == {"adaptive-context", "step-cache"}
    assert all("its steps read 44 frames from 0 on" in remark.message for remark in missed.values())
    assert all("cameras[:, start : start + frames]" in remark.hint for remark in missed.values())


def answered(policy: Policy, cameras: Tensor, frames: int | None = None, **further):
    plan_point = Decisions({"plan": PlanPoint(policy)}).bound["plan"]
    history = () if frames is None else (torch.randn(1, 4, frames, 4, 6),)
    return plan_point(cameras, *history, **further)[1].decision


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_plan_decides_for_the_frames_it_is_told(dtype: torch.dtype) -> None:
    path, policy = PATHS["back"].to(dtype), Policy(steps=(1, 2))
    for first in range(4, 40, 4):
        so_far = answered(policy, path[:, : first + 4])
        assert answered(policy, path, first=first) == so_far
        assert answered(policy, path, first=torch.arange(first, first + 4)) == so_far
        assert so_far.chunk == first // 4


@pytest.mark.parametrize("first", [38, -4, torch.tensor([4, 6, 8, 10]), torch.tensor([8, 7, 6, 5]), 12])
def test_frames_that_are_no_chunk_behind_the_history_reuse_nothing(first, caplog) -> None:
    with caplog.at_level("WARNING", logger="lightint_compile.runtime"):
        decision = answered(Policy(adapt_context=True, steps=(1, 2)), PATHS["back"], 8, first=first)
    assert decision.reused_steps == () and decision.context_frames == tuple(range(8))
    assert "all of its memory is gathered" in caplog.text


@pytest.mark.parametrize("chunk", [2, 3, 5, 8])
def test_chunks_of_other_lengths_are_decided_for(chunk: int) -> None:
    """A standing camera has seen everything, one that turns away has not; chunks are counted in their own length."""
    for cameras, seen in ((there_and_back(40, 0.0), True), (walk(40, 20.0, 0.0), False)):
        policy = Policy(chunk=chunk, adapt_context=True, steps=(1, 2))
        plan_point = Decisions({"plan": PlanPoint(policy)})
        for number in range(1, 40 // chunk):
            first = number * chunk
            index, record, *_ = plan_point.bound["plan"](cameras, torch.randn(1, 4, first, 4, 6), first=first)
            assert record.decision.chunk == number and index.tolist() == sorted(set(index.tolist()))
            assert len(index) <= policy.memory and int(index[-1]) == first - 1
        assert bool(record.decision.reused_steps) == seen
        assert [decision.chunk for decision in plan_point.made] == list(range(1, 40 // chunk))


WIDE = torch.diag(torch.tensor([0.505, 0.898, 1.0]))


def test_intrinsics_set_the_field_of_view_as_in_a_rollout() -> None:
    path = there_and_back(40, 6.0)
    with lightint_compile.rollout(cameras=path, intrinsics=WIDE) as run:
        expected = [run.chunk(number) for number in range(10)]
    plain = plan(path[0], AdaptiveRules())
    assert [d.overlap for d in expected] != [d.overlap for d in plain]
    for given in (WIDE.repeat(1, 40, 1, 1), WIDE.repeat(40, 1, 1), WIDE, torch.tensor([[[0.505, 0.898, 0.5, 0.5]]])):
        decided = Decisions({"plan": PlanPoint(Policy(steps=(1, 2)))})
        for number in range(10):
            decided.bound["plan"](path[:, : 4 * number + 4], intrinsics=given)
        assert [d.overlap for d in decided.made] == [d.overlap for d in expected]


def test_the_model_goes_on_retrieving_by_its_own_field_of_view() -> None:
    """Where context is not decided, what is written down is the model's own choice, whatever the intrinsics."""
    path, rules = walk(64, 4.0, 0.02), ModelRules(memory=20)
    decided = Decisions({"plan": PlanPoint(Policy(steps=(1, 2)))})
    for number in range(16):
        decided.bound["plan"](path[:, : 4 * number + 4], intrinsics=WIDE)
    assert [d.context_frames for d in decided.made] == [d.context_frames for d in plan(path[0], rules)]
    assert [d.context_frames for d in plan(path[0], rules.seeing(view_of(WIDE)))] != [
        d.context_frames for d in decided.made
    ]


def test_elements_of_a_batch_have_their_own_field_of_view() -> None:
    path, narrow = there_and_back(40, 6.0), torch.diag(torch.tensor([1.5, 1.5, 1.0]))
    both = torch.stack([WIDE, narrow])[:, None].expand(2, 40, 3, 3)
    decided = Decisions({"plan": PlanPoint(Policy(steps=(1, 2), each=True))})
    for number in range(10):
        each = decided.bound["plan"](path.expand(2, -1, -1, -1)[:, : 4 * number + 4], intrinsics=both)[1].own
    for own, intrinsics in zip(each, (WIDE, narrow), strict=True):
        with lightint_compile.rollout(cameras=path, intrinsics=intrinsics) as run:
            assert [run.chunk(number) for number in range(10)][-1].overlap == own.overlap


def test_intrinsics_that_tell_nothing_are_said_and_not_looked_at(caplog) -> None:
    with caplog.at_level("WARNING", logger="lightint_compile.runtime"):
        decision = answered(Policy(), PATHS["back"], intrinsics=torch.tensor([[969.0, 969.0, 0.0, 0.0]]))
    assert decision == answered(Policy(), PATHS["back"])
    assert "intrinsics are not looked at" in caplog.text and "image size" in caplog.text
