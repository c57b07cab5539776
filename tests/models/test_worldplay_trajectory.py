"""Pose strings, recorded paths and action labels; every malformed one is refused where it is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from scipy.spatial.transform import Rotation, Slerp
from torch import Tensor

from lightint_compile.errors import InputError
from lightint_compile.models.camera_paths.pose_files import parse_json, parse_lines
from lightint_compile.models.camera_paths.poses import normalise_intrinsics, resample
from lightint_compile.models.worldplay import Trajectory, load_trajectory, parse_pose_string


def wander(count: int) -> Tensor:
    """Camera-to-world poses of a hand-held walk, in metres, far from the origin."""
    turns = Rotation.from_euler("yxz", [[4 * i, 7 * math.sin(i), 3 * math.cos(i)] for i in range(count)], degrees=True)
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    poses[:, :3, :3] = torch.from_numpy(turns.as_matrix())
    poses[:, :3, 3] = torch.tensor([[5 + 0.3 * i, 1 + 0.02 * math.sin(i), 2 + 0.1 * i * i] for i in range(count)])
    return poses


def tum(poses: Tensor) -> str:
    lines = ["# time tx ty tz qx qy qz qw"]
    for index, pose in enumerate(poses):
        quaternion = Rotation.from_matrix(pose[:3, :3].numpy()).as_quat()
        lines.append(" ".join(f"{value:.12f}" for value in (10 + index / 30, *pose[:3, 3].tolist(), *quaternion)))
    return "\n".join(lines)


def kitti(poses: Tensor) -> str:
    return "\n".join(" ".join(f"{value:.12e}" for value in pose[:3].flatten().tolist()) for pose in poses)


def as_json(poses: Tensor) -> str:
    return json.dumps({"extrinsics": torch.linalg.inv(poses).tolist()})


def test_the_published_pose_strings() -> None:
    walk = Trajectory.from_pose_string("left-31,right-32")
    assert len(walk) == 64
    assert walk.actions.tolist() == [0.0] + [2.0] * 31 + [1.0] * 32
    assert torch.equal(walk.extrinsics[0], torch.eye(4))
    yaw = torch.rad2deg(torch.atan2(walk.extrinsics[31, 2, 0], walk.extrinsics[31, 0, 0]))
    assert float(yaw) == pytest.approx(-93.0, abs=1e-3)
    assert len(Trajectory.from_pose_string("w-31,s-32")) == 64


def test_forward_and_right_is_the_released_trajectory() -> None:
    extrinsics = Trajectory.from_pose_string("w+right-11").extrinsics
    cos, sin = math.cos(math.radians(6.0)), math.sin(math.radians(6.0))
    expected = torch.tensor([[cos, 0, -sin, 0.00418688], [0, 1, 0, 0], [sin, 0, cos, -0.15989037], [0, 0, 0, 1]])
    torch.testing.assert_close(extrinsics[2], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "label"),
    [
        *[("w", 9), ("s", 18), ("d", 27), ("a", 36), ("w+d", 45), ("w+a", 54), ("s+d", 63), ("s+a", 72)],
        *[("right", 1), ("left", 2), ("up", 3), ("down", 4)],
        *[("right+up", 5), ("right+down", 6), ("left+up", 7), ("left+down", 8)],
        *[("w+right", 10), ("s+a+left+down", 80)],
    ],
)
def test_labels_say_what_the_keys_did(keys: str, label: int) -> None:
    assert Trajectory.from_pose_string(f"{keys}-7").actions.tolist() == [0.0] + [float(label)] * 7


def test_up_looks_up() -> None:
    forward = parse_pose_string("up-10")[-1][:3, 2]
    assert float(forward[1]) == pytest.approx(-math.sin(math.radians(30.0)))


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("", 0, "not KEYS-COUNT"),
        ("w", 0, "not KEYS-COUNT"),
        ("w-3,", 4, "not KEYS-COUNT"),
        ("w-3,,s-2", 4, "not KEYS-COUNT"),
        ("w-3,s--2", 4, "not KEYS-COUNT"),
        ("w-3,s-1.5", 4, "not KEYS-COUNT"),
        ("w-3, s-0", 4, "count is 0"),
        ("w-3,lefft-2", 4, "did you mean 'left'"),
        ("w-3,w+s-2", 4, "keys cancel"),
        ("w-3,w+w-2", 4, "repeated"),
    ],
)
def test_a_bad_pose_string_says_where(text: str, position: int, reason: str) -> None:
    with pytest.raises(InputError, match=f"position {position}:") as caught:
        parse_pose_string(text)
    assert reason in str(caught.value)


@pytest.mark.parametrize(("name", "spell"), [("walk.txt", tum), ("00.txt", kitti), ("walk.json", as_json)])
def test_recorded_paths_agree_in_every_format(tmp_path: Path, name: str, spell) -> None:
    poses = wander(12)
    (tmp_path / name).write_text(spell(poses))
    kept = load_trajectory(tmp_path / name, step=None)
    expected = torch.linalg.inv(torch.linalg.inv(poses[0]) @ poses).float()
    torch.testing.assert_close(kept.extrinsics, expected, rtol=0, atol=1e-5)
    walk = load_trajectory(tmp_path / name, frames=32)
    centres = torch.linalg.inv(walk.extrinsics.double())[:, :3, 3]
    assert float((centres[1:] - centres[:-1]).norm(dim=-1).median()) == pytest.approx(0.08, rel=1e-4)
    assert len(walk) == 32


def test_resampling_is_slerp_and_lerp() -> None:
    poses, times = wander(6), torch.tensor([0.0, 0.5, 0.7, 1.9, 2.0, 4.0])
    sampled, wanted = resample(poses, times, 17), torch.linspace(0, 4, 17, dtype=torch.float64)
    expected = Slerp(times.numpy(), Rotation.from_matrix(poses[:, :3, :3].numpy()))(wanted.numpy()).as_matrix()
    torch.testing.assert_close(sampled[:, :3, :3], torch.from_numpy(expected), rtol=0, atol=1e-6)
    torch.testing.assert_close(sampled[-1], poses[-1], rtol=0, atol=1e-9)
    torch.testing.assert_close(sampled[1, :3, 3], (poses[0, :3, 3] + poses[1, :3, 3]) / 2)


def test_a_path_that_only_turns_keeps_its_scale(tmp_path: Path) -> None:
    (tmp_path / "turn.txt").write_text(kitti(parse_pose_string("right-7")))
    walk = load_trajectory(tmp_path / "turn.txt")
    assert walk.actions.tolist() == [0.0] + [1.0] * 7
    assert walk.extrinsics[:, :3, 3].abs().max() < 1e-6


GOOD = "0 0 0 0 0 0 0 1"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "file"),
        ("# only a comment\n", "file"),
        (f"{GOOD}\n1 0 0 zero 0 0 0 1", "line 2"),
        (f"{GOOD}\n1 0 0 nan 0 0 0 1", "line 2"),
        (f"# head\n\n{GOOD}\n1 0 0 0 0 0 1", "line 4"),
        (f"{GOOD}\n0 0 0 0 0 0 0 1", "line 2"),
        (f"{GOOD}\n1 0 0 0 0 0 0 0.5", "line 2"),
        ("1 2 3", "line 1"),
        ("1 0 0 0 0 1 0 0 0 0 1 0\n1 0 0 0 0 1 0 0 0 0 2 0", "line 2"),
        ("1 0 0 0 0 1 0 0 0 0 -1 0", "line 1"),
    ],
)
def test_a_bad_line_is_named(text: str, where: str) -> None:
    with pytest.raises(InputError, match=where):
        parse_lines(text, "file")


EYE = torch.eye(4).tolist()


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ("{", "no JSON"),
        ([], "extrinsics"),
        ({"poses": [EYE]}, "extrinsics"),
        ({"extrinsics": []}, "extrinsics"),
        ({"extrinsics": [EYE, [[1, 2], [3]]]}, r"extrinsics\[1\]"),
        ({"extrinsics": [EYE, EYE[:3]]}, r"extrinsics\[1\]"),
        ({"extrinsics": [EYE, (2 * torch.eye(4)).tolist()]}, "frame 1"),
        ({"extrinsics": [EYE], "convention": "opengl"}, "convention"),
        ({"extrinsics": [EYE], "times": [0.0, 1.0]}, "times"),
        ({"extrinsics": [EYE], "intrinsics": [[1, 0], [0, 1]]}, "intrinsics"),
        ({"extrinsics": [EYE], "intrinsics": [torch.eye(3).tolist()] * 2}, "intrinsics"),
    ],
)
def test_bad_json_is_named(data, where: str) -> None:
    with pytest.raises(InputError, match=where):
        parse_json(data if isinstance(data, str) else json.dumps(data), "file")


def test_json_conventions_and_intrinsics() -> None:
    poses = wander(4)
    pixels = [[969.697, 0, 960], [0, 969.697, 540], [0, 0, 1]]
    data = {"extrinsics": poses.tolist(), "convention": "camera_to_world", "intrinsics": pixels, "times": [0, 1, 2, 4]}
    recorded = parse_json(json.dumps(data), "file")
    torch.testing.assert_close(recorded.poses, poses)
    assert recorded.times.tolist() == [0.0, 1.0, 2.0, 4.0]
    expected = Trajectory.from_pose_string("w-3").intrinsics[0]
    torch.testing.assert_close(recorded.intrinsics.float(), expected)
    torch.testing.assert_close(normalise_intrinsics(torch.tensor(pixels)), expected)


def test_unreadable_files_and_bad_focal_lengths(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_trajectory(tmp_path / "missing.txt")
    flat = torch.diag(torch.tensor([0.5, 0.0, 1.0]))
    with pytest.raises(InputError, match="positive focal"):
        Trajectory.from_pose_string("w-3", flat)
    (tmp_path / "own.json").write_text(json.dumps({"extrinsics": [EYE] * 3, "intrinsics": [torch.eye(3).tolist()] * 3}))
    with pytest.raises(InputError, match="cannot be resampled"):
        load_trajectory(tmp_path / "own.json", frames=8)
    with pytest.raises(InputError, match="Times must increase"):
        resample(wander(3), torch.tensor([0.0, 1.0, 1.0]), 8)
