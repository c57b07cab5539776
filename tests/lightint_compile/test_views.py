"""View overlap against a reference of a million points, in closed form and on fixed points."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightint_compile.errors import InputError
from lightint_compile.runtime.views import AngularView, PinholeView, check_cameras

VIEW = AngularView()


def _camera(yaw: float, pitch: float = 0.0, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Tensor:
    """World-to-camera of a camera turned right by ``yaw`` and down by ``pitch`` degrees."""
    a, b = math.radians(yaw), math.radians(pitch)
    about_y = torch.tensor([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
    about_x = torch.tensor([[1, 0, 0], [0, math.cos(b), math.sin(b)], [0, -math.sin(b), math.cos(b)]])
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = (about_y @ about_x).double()
    pose[:3, 3] = torch.tensor(centre, dtype=torch.float64)
    return torch.linalg.inv(pose)


def _reference(current: Tensor, remembered: Tensor, points: int = 1_000_000) -> float:
    """The share by random points in the whole ball, as the model's own sampler draws them."""
    draw = torch.Generator().manual_seed(0)
    direction = torch.randn(points, 3, generator=draw, dtype=torch.float64)
    radius = VIEW.radius * torch.rand(points, 1, generator=draw, dtype=torch.float64) ** (1 / 3)
    here = direction / direction.norm(dim=-1, keepdim=True) * radius
    pose = current @ torch.linalg.inv(remembered)
    seen = _within(here, torch.eye(4, dtype=torch.float64))
    shared = seen & _within(here - pose[:3, 3], pose) & ((here - pose[:3, 3]).norm(dim=-1) <= VIEW.radius)
    return float(shared.sum() / seen.sum())


def _within(points: Tensor, pose: Tensor) -> Tensor:
    forward = pose[:3, 2]
    azimuth = torch.atan2(points[:, 0], points[:, 2]) - torch.atan2(forward[0], forward[2])
    flat = torch.hypot(points[:, 0], points[:, 2])
    elevation = torch.atan2(points[:, 1], flat) - torch.atan2(forward[1], torch.hypot(forward[0], forward[2]))
    wrapped = torch.remainder(azimuth + math.pi, 2 * math.pi) - math.pi
    return (wrapped.abs() < math.radians(30)) & (elevation.abs() < math.radians(17.5))


def _pairs() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    pairs = []
    for _ in range(12):
        yaw, pitch, *centre = (torch.randn(5, generator=draw) * torch.tensor([20.0, 6.0, 1.0, 0.3, 1.0])).tolist()
        pairs.append((_camera(0.0), _camera(yaw, pitch, tuple(centre))))
    return pairs


def test_points_are_as_exact_as_the_models_own_sampler() -> None:
    errors = [float(VIEW.overlap(a[None], b[None])) - _reference(a, b) for a, b in _pairs()]
    assert math.sqrt(sum(error**2 for error in errors) / len(errors)) <= 0.008


@pytest.mark.parametrize(
    ("yaw", "pitch", "share"), [(0, 0, 1.0), (18, 0, 0.7), (60, 0, 0.0), (0, 35, 0.0), (90, 0, 0.0)]
)
def test_turning_on_the_spot_has_a_closed_form(yaw: float, pitch: float, share: float) -> None:
    assert float(VIEW.overlap(_camera(0)[None], _camera(yaw, pitch)[None])) == pytest.approx(share, abs=1e-6)


def test_the_closed_form_agrees_with_points() -> None:
    turned = _camera(11, 4)
    exact = float(VIEW.overlap(_camera(0)[None], turned[None]))
    assert exact == pytest.approx(_reference(_camera(0), turned), abs=3e-3)
    assert exact == pytest.approx(float(VIEW.covers(_camera(0)[None], turned[None]).double().mean()), abs=1e-2)


def test_overlaps_come_in_one_batch_and_are_repeatable() -> None:
    cameras = torch.stack([_camera(3 * n, 0, (0.08 * n, 0, 0)) for n in range(12)])
    table = VIEW.overlap(cameras[-4:], cameras)
    assert table.shape == (4, 12)
    assert torch.equal(table, VIEW.overlap(cameras[-4:], cameras))
    assert table[3, 11] == 1.0


def test_a_pinhole_frustum_sees_itself_and_nothing_behind() -> None:
    view = PinholeView()
    both = torch.stack([_camera(0), _camera(180)])
    overlap = view.overlap(_camera(0)[None], both)[0]
    assert overlap[0] > 0.75  # the grid's own border points lie on the frustum's far plane
    assert overlap[1] == 0.0


@pytest.mark.parametrize("spoil", ["nan", "scale", "mirror", "bottom"])
def test_cameras_that_are_no_rigid_transforms_are_named(spoil: str) -> None:
    cameras = torch.stack([_camera(0), _camera(5)])
    if spoil == "nan":
        cameras[1, 0, 3] = math.nan
    elif spoil == "scale":
        cameras[1, :3, :3] *= 1.1
    elif spoil == "mirror":
        cameras[1, 0] *= -1
    else:
        cameras[1, 3, 0] = 0.5
    with pytest.raises(InputError, match="rigid") as caught:
        check_cameras(cameras)
    assert "frame 1" in str(caught.value)
