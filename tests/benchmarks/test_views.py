"""View overlap beside the release's sampler, per pair of cameras, and a decision at the end of a path."""

import pytest
import torch
from cameras import camera
from upstream_views import ball, sampled_overlap

from lightint_compile.models.worldplay.trajectory import Trajectory
from lightint_compile.runtime.planner import Planner
from lightint_compile.runtime.rules import AdaptiveRules
from lightint_compile.runtime.view_overlap import AngularView

PAIRS = 96


@pytest.fixture
def cameras():
    return torch.stack([camera(3 * n, 0, (0.08 * n, 0, 0)) for n in range(PAIRS // 4)])


def test_ours(benchmark, cameras):
    view = AngularView()
    benchmark.extra_info["pairs"] = PAIRS
    assert benchmark(view.overlap, cameras[:4], cameras).shape == (4, PAIRS // 4)


def test_the_releases_sampler(benchmark, cameras):
    points = ball()
    benchmark.extra_info["pairs"] = 1
    assert 0 < benchmark(sampled_overlap, points, cameras[0], cameras[1]) < 1


@pytest.mark.parametrize("path", ["left-31,right-32", "w-63", "w-255"])
def test_a_decision_at_the_end_of_a_path(benchmark, path):
    extrinsics = Trajectory.from_pose_string(path).extrinsics
    planner = Planner(AdaptiveRules())
    benchmark.group = "decision"
    decision = benchmark(planner.decide, extrinsics, 1.4)
    assert decision.chunk == len(extrinsics) // 4 - 1
