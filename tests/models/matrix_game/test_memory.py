"""Which frames a clip remembers, against views whose overlap is known; gates of the published rules on them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightint_compile.models.matrix_game import MatrixGameConfig, Trajectory
from lightint_compile.models.matrix_game.memory import asked_overlaps, camera_poses, remembered, shared_points

CONFIG = MatrixGameConfig.tiny()


def looking(yaw: float, place: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Tensor:
    """Camera-to-world [1, 1, 4, 4]: turned right by `yaw` degrees, at `place`; x right, z forward."""
    cosine, sine = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
    rows = [[cosine, 0, sine, place[0]], [0, 1, 0, place[1]], [-sine, 0, cosine, place[2]], [0, 0, 0, 1]]
    return torch.tensor([[rows]])


def seen_by_hand(reference: Tensor, candidate: Tensor) -> int:
    """Point by point, in float64, with edges that count."""
    moved = torch.linalg.inv(candidate[0, 0].double()) @ reference[0, 0].double()
    count = 0
    for column in range(10):
        for row in range(10):
            for depth in range(10):
                z = 0.1 + depth * 29.9 / 9
                point = torch.tensor([(column / 4.5 - 1) * z, (row / 4.5 - 1) * z, z, 1.0], dtype=torch.float64)
                x, y, z = (moved @ point)[:3].tolist()
                count += abs(x) <= z + 1e-6 and abs(y) <= z + 1e-6 and 0.1 + 1e-5 < z < 30.0 - 1e-4
    return count


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        (looking(0.0), 800),  # of ten depths the first and the last are no depths that a camera sees
        (looking(180.0), 0),
        (looking(0.0, (0.0, 0.0, -1.0)), 900),
        (looking(30.0), None),
        (looking(-75.0, (3.0, 0.5, 2.0)), None),
    ],
)
def test_points_that_both_see(candidate: Tensor, expected: int | None) -> None:
    count = int(shared_points(looking(0.0), candidate))
    assert count == seen_by_hand(looking(0.0), candidate)
    assert expected is None or count == expected


def walk(text: str, clips: int) -> Tensor:
    poses = camera_poses(Trajectory.from_pose_string(text).video_extrinsics[None])
    return poses[:, : 57 + 40 * (clips - 1)]


def test_turning_back_remembers_where_it_was() -> None:
    # The camera turns left for 44 latent frames and then right: frame 44 + n sees what frame 44 - n saw.
    poses = walk("left-44,right-40", 6)
    asked, overlaps = asked_overlaps(CONFIG, poses)
    last = poses.shape[1] - 1
    assert asked.tolist() == [2 * 4 * 44 - (last - 8 * each) for each in range(5)]
    assert overlaps.tolist() == pytest.approx([0.8] * 5)
    assert remembered(CONFIG, poses).tolist() == [(int(frame) - 1) // 4 + 1 for frame in asked[:4]] + [1]


def test_a_batch_shares_one_choice() -> None:
    left, right = walk("left-34", 3), walk("right-34", 3)
    assert torch.equal(remembered(CONFIG, torch.cat([left, right])), remembered(CONFIG, left))


def test_the_earliest_of_equal_frames_is_remembered() -> None:
    still = torch.eye(4).repeat(1, 97, 1, 1)
    asked, _ = asked_overlaps(CONFIG, still)
    assert asked.tolist() == [1] * 5
