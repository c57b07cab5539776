"""The parts of the demo: the hand-held path, a run in numbers, the table, the picture. `make demo` runs it whole."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from lightint_compile.demo.handheld import RATE, handheld_path, handheld_poses
from lightint_compile.demo.job import LEAST_CHUNKS, Setup
from lightint_compile.demo.measure import Run, measure
from lightint_compile.demo.picture import context_map, draw
from lightint_compile.demo.table import summary, table
from lightint_compile.errors import OptionError
from lightint_compile.models.registry import TINY, world_model


@pytest.fixture(scope="module", params=[TINY, "matrix-game:tiny"])
def setup(request: pytest.FixtureRequest) -> Setup:
    return Setup.make(world_model(request.param), LEAST_CHUNKS, seed=0)


def test_the_hand_held_path_moves_like_a_person() -> None:
    poses, times = handheld_poses(300)
    centres, forward = poses[:, :3, 3], poses[:, :3, 2]
    identity = torch.eye(3, dtype=torch.float64).expand(300, 3, 3)
    torch.testing.assert_close(poses[:, :3, :3] @ poses[:, :3, :3].mT, identity)
    speed = (centres[1:] - centres[:-1]).norm(dim=-1) * RATE
    assert 1.0 < speed.median() < 1.6
    assert 0.02 < centres[:, 1].abs().max() < 0.03
    turned = torch.acos((forward[1:] * forward[:-1]).sum(-1).clamp(-1, 1)) * RATE
    assert math.radians(1) < turned.median() < math.radians(90)
    assert float(times[-1]) == 299 / RATE


def test_the_hand_held_path_depends_on_its_seed_alone() -> None:
    first, again, other = (handheld_path(world_model(TINY), 16, seed) for seed in (0, 0, 1))
    assert torch.equal(first.extrinsics, again.extrinsics) and not torch.equal(first.extrinsics, other.extrinsics)
    assert len(first) == 16


def test_every_path_is_as_long_as_asked(setup: Setup) -> None:
    frames = setup.model.spec.frames(LEAST_CHUNKS)
    assert [len(path) for path in setup.paths.values()] == [frames] * 2
    assert next(iter(setup.paths)) == {12: "left-5,right-6", 35: "left-16,right-18"}[frames]


def test_too_few_chunks_are_an_error() -> None:
    with pytest.raises(OptionError, match="2 chunks are too few"):
        Setup.make(world_model(TINY), 2, seed=0)


def test_a_run_is_measured_chunk_by_chunk_and_compares_with_itself(setup: Setup, tmp_path: Path) -> None:
    heard: list[float] = []
    runs = [
        measure("eager", path, setup.chunk, setup.model, setup.scene, cameras, seed=0, after_chunk=heard.append)
        for path, cameras in setup.paths.items()
    ]
    assert [len(run.chunk_seconds) for run in runs] == [LEAST_CHUNKS] * 2 and len(heard) == 2 * LEAST_CHUNKS
    size = setup.model.example_inputs(0, "meta")["noise"].shape
    assert runs[0].video.shape == (*size[:2], setup.model.spec.frames(LEAST_CHUNKS), *size[3:])
    assert runs[0].trace_seconds == runs[0].compile_seconds == 0.0
    rows = summary(runs, rewrites=7)
    assert [row["difference"] for row in rows] == [0.0, 0.0] and [row["speed"] for row in rows] == [1.0, 1.0]
    assert table(rows).row_count == 2
    contexts = {path: context_map(setup.model, cameras) for path, cameras in setup.paths.items()}
    draw(tmp_path / "demo.png", runs, contexts)
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_the_context_map_shows_new_frames_and_those_looked_back_at(setup: Setup) -> None:
    used, spec = context_map(setup.model, next(iter(setup.paths.values()))), setup.model.spec
    ends = [spec.frames(chunks) for chunks in range(1 + LEAST_CHUNKS)]
    for row, first, end in zip(used.tolist(), ends, ends[1:], strict=False):
        assert row[first:end] == [2] * (end - first) and set(row[end:]) <= {0}
        back = sum(each == 1 for each in row[:first])
        least = spec.memory if spec.clip > 1 else spec.recent  # several may ask for the same single frame
        assert min(first, least) <= back <= min(first, spec.memory)


def test_steady_seconds_leave_out_the_chunks_that_compile() -> None:
    run = Run("x", "path", (100.0, 50.0, 1.0, 2.0, 3.0), 0.0, 0.0, torch.ones(1))
    assert run.steady_seconds == 2.0
