"""Context selection against the rules in plain Python, and view overlap against geometry known in closed form."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from lightint_compile.models.worldplay import Trajectory, WorldPlayConfig
from lightint_compile.models.worldplay.context import RADIUS, ContextSelector, ball_points
from lightint_compile.models.worldplay.trajectory import step_pose

CONFIG = WorldPlayConfig.tiny()
WALKS = ("w-67", "left-30,right-37", "w+left-20,s-10,d+up-20,right-17")


def similarity(current: Tensor, remembered: Tensor, points: Tensor) -> float:
    """The rule as written, one pair of world-to-camera matrices at a time."""
    pose = current.double() @ torch.linalg.inv(remembered.double())
    centre, forward = pose[:3, 3].tolist(), pose[:3, 2].tolist()
    yaw = math.atan2(forward[0], forward[2])
    pitch = math.atan2(forward[1], math.hypot(forward[0], forward[2]))

    def sees(x: float, y: float, z: float, yaw: float, pitch: float) -> bool:
        right = (math.atan2(x, z) - yaw + math.pi) % (2 * math.pi) - math.pi
        down = (math.atan2(y, math.hypot(x, z)) - pitch + math.pi) % (2 * math.pi) - math.pi
        return abs(right) < math.radians(30.0) and abs(down) < math.radians(17.5)

    visible = both = 0
    for x, y, z in points.tolist():
        if not sees(x, y, z, 0.0, 0.0):
            continue
        visible += 1
        dx, dy, dz = x - centre[0], y - centre[1], z - centre[2]
        both += sees(dx, dy, dz, yaw, pitch) and math.sqrt(dx * dx + dy * dy + dz * dz) <= RADIUS
    return both / visible if visible else 0.0


def oracle(config: WorldPlayConfig, overlap: Tensor, frames: int) -> list[int]:
    """The selection rules on a table overlap[query frame, remembered frame]; the earliest of equal clips wins."""
    if frames <= config.memory:
        return list(range(frames))
    chosen = {*range(config.sink), *range(frames - config.recent, frames)}
    starts = range(config.sink, frames - config.recent, config.chunk_frames)
    score = {start: round(float((overlap[:, start] + overlap[:, start + 2]).double().sum()), 4) for start in starts}
    for start in sorted(score, key=lambda start: -score[start])[: config.retrieved_clips]:
        chosen |= set(range(start, start + config.chunk_frames))
    return sorted(chosen)


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize(("memory", "recent"), [(20, 12), (24, 8), (12, 4), (16, 12), (8, 4)])
def test_selection_follows_the_rules(walk: str, memory: int, recent: int) -> None:
    config = dataclasses.replace(CONFIG, memory=memory, recent=recent)
    selector = ContextSelector(config)
    extrinsics = Trajectory.from_pose_string(walk).extrinsics[None]
    for frames in range(4, 65, 4):
        cameras = extrinsics[:, : frames + 4]
        overlap = selector.overlap(cameras[:, -4:], cameras[:, :frames])[0]
        assert selector(cameras, frames).tolist() == oracle(config, overlap, frames)


def test_turning_back_retrieves_what_was_seen() -> None:
    extrinsics = Trajectory.from_pose_string("left-31,right-32").extrinsics[None]
    selected = ContextSelector(CONFIG)(extrinsics[:, :60], 56).tolist()
    assert selected[:4] == [0, 1, 2, 3] and selected[8:] == list(range(44, 56))
    # Frames 56..59 look 18 to 9 degrees to the left of the start, and so did frames 4 to 7 (12 to 21 degrees).
    assert selected[4:8] == [4, 5, 6, 7]


def test_overlap_is_the_rule_for_every_pair() -> None:
    selector = ContextSelector(CONFIG)
    extrinsics = Trajectory.from_pose_string("w+left-4,up+right-4,d-3").extrinsics[None]
    table = selector.overlap(extrinsics[:, 8:], extrinsics)[0]
    for query in range(4):
        for frame in range(12):
            expected = similarity(extrinsics[0, 8 + query], extrinsics[0, frame], selector.points)
            # Float32 may move a point that lies on an edge to the other side.
            assert abs(float(table[query, frame]) - expected) <= 2 / 20


@pytest.mark.parametrize("turn", [0, 5, 12, 20, 25])
def test_overlap_of_a_turn_is_the_shared_angle(turn: int) -> None:
    selector = ContextSelector(dataclasses.replace(CONFIG, fov_points=50_000))
    pose = torch.linalg.matrix_power(step_pose((0.0, 0.0), (1.0, 0.0)), turn)
    overlap = selector.overlap(torch.eye(4)[None, None], torch.linalg.inv(pose).float()[None, None])
    assert float(overlap) == pytest.approx(max(0.0, 1.0 - 3.0 * turn / 60.0), abs=0.01)


def test_points_fill_the_ball_and_survive_casts_and_devices() -> None:
    points = ball_points(4096, torch.device("cpu"), torch.float32)
    radii = points.norm(dim=-1)
    assert float(radii.max()) <= RADIUS
    assert float((radii < RADIUS / 2).float().mean()) == pytest.approx(1 / 8, abs=0.01)
    assert points.mean(dim=0).abs().max() < 0.1
    selector = ContextSelector(CONFIG)
    expected = selector.points.clone()
    assert torch.equal(selector.bfloat16().points, expected)
    with torch.device("meta"):
        absent = ContextSelector(CONFIG)
    assert torch.equal(absent.to_empty(device="cpu").points, expected)
    assert selector.state_dict() == {}
