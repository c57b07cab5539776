"""Actions to cameras and back, and the maps of rays that are made from them."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from lightint_compile.errors import InputError
from lightint_compile.models.matrix_game import MatrixGameConfig, Trajectory, load_trajectory
from lightint_compile.models.matrix_game.cameras import ray_map, relative, seen_from, steps_of
from lightint_compile.models.matrix_game.memory import camera_poses
from lightint_compile.models.registry import world_model
from lightint_compile.models.world_model import turn_and_back


def pose(video: int, trajectory: Trajectory) -> Tensor:
    return camera_poses(trajectory.video_extrinsics)[video]


def test_walking_forward() -> None:
    walk = Trajectory.from_pose_string("w-14")
    assert (len(walk), walk.video_extrinsics.shape[0]) == (15, 57)
    assert pose(56, walk)[:3, 3].tolist() == pytest.approx([0.0, 0.0, 56 * 0.1235], abs=1e-4)
    assert torch.equal(walk.keyboard, torch.tensor([1.0, 0, 0, 0, 0, 0]).repeat(57, 1))
    assert torch.equal(walk.extrinsics[0], torch.eye(4)) and torch.equal(walk.mouse, torch.zeros(57, 2))


def test_diagonals_share_the_speed_and_headings_are_means() -> None:
    diagonal = pose(4, Trajectory.from_pose_string("w+a-1"))[:3, 3]
    assert diagonal.tolist() == pytest.approx([-4 * 0.0873, 0.0, 4 * 0.0873], abs=1e-4)
    turning = pose(1, Trajectory.from_pose_string("w+right-1"))
    heading = math.radians(0.75)
    assert turning[:3, 3].tolist() == pytest.approx(
        [0.1235 * math.sin(heading), 0.0, 0.1235 * math.cos(heading)], abs=1e-5
    )


@pytest.mark.parametrize(
    ("key", "axis", "sign"), [("right", "y", 1), ("left", "y", -1), ("up", "x", -1), ("down", "x", 1)]
)
def test_a_turning_key_is_six_degrees_a_latent_frame(key: str, axis: str, sign: int) -> None:
    turned = pose(12, Trajectory.from_pose_string(f"{key}-3"))[:3, :3]
    expected = Rotation.from_euler(axis, 18 * sign, degrees=True).as_matrix()
    torch.testing.assert_close(turned.double(), torch.from_numpy(expected), rtol=0, atol=1e-5)


def test_small_mouse_values_do_not_turn() -> None:
    mouse = torch.tensor([[0.0, 0.01]]).repeat(5, 1)
    assert torch.equal(Trajectory.from_actions(mouse, torch.zeros(5, 6)).extrinsics[1], torch.eye(4))


@pytest.mark.parametrize("text", ["w-6", "s+a-6", "left-6", "w+right-4,d-3", "down-5"])
def test_actions_are_read_back_from_cameras(text: str) -> None:
    walk = Trajectory.from_pose_string(text)
    again = Trajectory.from_poses(camera_poses(walk.video_extrinsics))
    # Where keys change, a camera holds the row before it.
    torch.testing.assert_close(again.mouse, walk.mouse, rtol=0, atol=1e-3)
    assert torch.equal(again.keyboard, walk.keyboard)


def test_a_pose_file_is_resampled_and_scaled(tmp_path) -> None:
    lines = [f"{i / 30} 0 0 {0.01 * i} 0 0 0 1" for i in range(90)]
    (tmp_path / "walk.txt").write_text("\n".join(lines))
    walk = load_trajectory(tmp_path / "walk.txt", frames=15)
    assert len(walk) == 15
    assert pose(56, walk)[2, 3].item() == pytest.approx(56 * 0.1235, rel=1e-4)
    assert torch.equal(walk.keyboard[:, 0], torch.ones(57))


@pytest.mark.parametrize(
    ("text", "reason"), [("w-3,lefft-2", "did you mean 'left'"), ("w+s-2", "keys cancel"), ("w", "KEYS-COUNT")]
)
def test_a_bad_pose_string_says_where(text: str, reason: str) -> None:
    with pytest.raises(InputError, match="position") as caught:
        Trajectory.from_pose_string(text)
    assert reason in str(caught.value)


def test_no_whole_number_of_latent_frames() -> None:
    with pytest.raises(InputError, match="latent frames"):
        Trajectory.from_actions(torch.zeros(6, 2), torch.zeros(6, 6))


def test_steps_of_a_clip_are_scaled_by_the_longest() -> None:
    poses = camera_poses(Trajectory.from_pose_string("w+right-5,w-4,right-3").extrinsics[None])
    steps = steps_of(poses)
    assert torch.equal(steps[:, 0], torch.eye(4)[None])
    lengths = steps[0, :, :3, 3].norm(dim=-1)
    assert float(lengths.max()) == pytest.approx(1.0) and float(lengths[-3:].max()) < 1e-3
    expected = torch.linalg.inv(poses[0, 3]) @ poses[0, 4]
    torch.testing.assert_close(steps[0, 4, :3, :3], expected[:3, :3], rtol=0, atol=1e-5)
    torch.testing.assert_close(seen_from(poses[:, :1], poses[:, 5:6])[0, 0, :3, 3].norm(), torch.tensor(1.0))


def test_rays_pixel_by_pixel() -> None:
    config = MatrixGameConfig.tiny()
    placed = camera_poses(Trajectory.from_pose_string("w+right-1,d+down-1").extrinsics[None])
    rays = ray_map(config, placed)
    assert rays.shape == (1, 1536, 3, 4, 6)
    for row, column in ((0, 0), (37, 61), (63, 95)):
        ahead = torch.tensor([(column + 0.5 - 48) / 48, (row + 0.5 - 32) / 32, 1.0])
        turned = placed[0, 2, :3, :3] @ (ahead / ahead.norm())
        pixel = 16 * (row % 16) + column % 16
        seen = rays[0, pixel::256, 2, row // 16, column // 16]
        torch.testing.assert_close(seen, torch.cat([placed[0, 2, :3, 3], turned]), rtol=0, atol=1e-5)


def test_relative_poses_keep_their_digits_far_away() -> None:
    far = torch.eye(4).repeat(2, 1, 1)
    far[:, :3, 3] = torch.tensor([[4000.0, 10.0, 3000.0], [4000.0, 10.0, 3000.125]])
    assert relative(far[0], far[1])[:3, 3].tolist() == [0.0, 0.0, 0.125]


def test_commands_turn_and_come_back_in_whole_chunks() -> None:
    assert turn_and_back(world_model("worldplay:tiny").spec) == "left-31,right-32"
    spec = world_model("matrix-game:tiny").spec
    assert turn_and_back(spec) == "left-31,right-33"
    assert [spec.frames(chunks) for chunks in range(4)] == [0, 15, 25, 35]
    assert [spec.chunks(frames) for frames in (14, 15, 24, 25)] == [0, 1, 1, 2]
    assert [spec.lead(frames) for frames in (5, 15, 20, 35)] == [None, 5, None, 5]
