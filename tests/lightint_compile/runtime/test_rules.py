"""The rules by themselves: the published table, revisit against exploration, hysteresis, windows, near-duplicates."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cameras import camera

from lightint_compile.models.worldplay.trajectory import Trajectory
from lightint_compile.runtime.decision import Decision
from lightint_compile.runtime.planner import plan
from lightint_compile.runtime.rules import AdaptiveRules, PublishedRules, Situation

TABLE = {"left-31,right-32": (148, 8), "w-31,s-32": (168, 13), "w-63": (168, 13), "d-31,a-32": (168, 13)}


def path(text: str) -> torch.Tensor:
    return Trajectory.from_pose_string(text).extrinsics


@pytest.mark.parametrize("text", TABLE)
def test_the_published_rules_decide_as_the_release_does(text: str) -> None:
    made = plan(path(text), PublishedRules())
    assert (sum(len(each.context_frames) for each in made), sum(bool(each.reused_steps) for each in made)) == TABLE[
        text
    ]


@pytest.mark.parametrize("text", ["w-63", "w+right-63", "left-63"])
def test_pure_exploration_is_no_revisit(text: str) -> None:
    made = plan(path(text), AdaptiveRules())
    assert all(each.novel and not each.reused_steps for each in made)


@pytest.mark.parametrize("text", ["left-31,right-32", "w-31,s-32"])
def test_coming_back_is_one(text: str) -> None:
    made = plan(path(text), AdaptiveRules())
    assert [each.novel for each in made] == [True] * 8 + [False] * 8, "from the first step back"
    assert made[8].context_frames == (*range(4), *range(24, 32)) and made[10].context_frames[4:8] == (20, 21, 22, 23)


def turned(degrees: float) -> torch.Tensor:
    """A history that looked one way for eight frames and another for sixteen, and a chunk ``degrees`` off the first."""
    return torch.stack([camera(0)] * 8 + [camera(120)] * 16 + [camera(degrees)] * 4)


@pytest.mark.parametrize(("before", "novel"), [(None, True), (True, True), (False, False)])
def test_between_the_thresholds_the_chunk_before_decides(before: bool | None, novel: bool) -> None:
    last = None if before is None else Decision(chunk=5, context_frames=(), novel=before)
    made = AdaptiveRules().decide(Situation(6, turned(18.0), before=last))
    assert made.overlap == pytest.approx(0.7, abs=1e-6) and made.novel is novel
    assert made.threshold == (0.72 if novel else 0.68)


@pytest.mark.parametrize(("dynamics", "window"), [(None, 4), (0.5, 4), (1.6, 4), (2.4, 8), (3.2, 12), (9.0, 12)])
def test_the_recent_window_follows_the_latents(dynamics: float | None, window: int) -> None:
    made = AdaptiveRules().decide(Situation(15, path("w-63"), dynamics))
    assert made.context_frames == (*range(4), *range(60 - window, 60))


def test_near_duplicates_are_not_chosen_twice() -> None:
    ways = [0] * 4 + [20] * 4 + [20] * 4 + [-20] * 4 + [120] * 16
    cameras = torch.stack([camera(way) for way in ways] + [camera(0, 0, (0.05, 0, 0))] * 4)
    rules = dataclasses.replace(AdaptiveRules(enter=0.6, leave=0.6), clips=2)
    made = rules.decide(Situation(8, cameras))
    assert set(made.context_frames) & set(range(4, 16)) in ({*range(4, 8), *range(12, 16)}, {*range(8, 16)})
