"""View overlap against a reference of a million points, in closed form and on fixed points."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from cameras import camera
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from upstream_views import ball, sampled_overlap

from lightint_compile.errors import OptionError
from lightint_compile.runtime.view_overlap import AngularView, PinholeView, Sight

VIEW = AngularView()


class _Elements(TorchDispatchMode):
    """Counts the elements that operations write."""

    written = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        leaves = pytree.tree_leaves(result)
        self.written += sum(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor) and not leaf._is_view())
        return result


class _Points(np.ndarray):
    """Points that count the elements written by operations on them and on what comes of them."""

    written = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        plain = [np.asarray(each) if isinstance(each, _Points) else each for each in inputs]
        result = getattr(ufunc, method)(*plain, **kwargs).view(_Points)
        _Points.written += result.size
        return result


@pytest.fixture
def counted(monkeypatch):
    """A view that counts, in ``_Points.written``, what is done to its points."""
    view = AngularView()
    view.__dict__["_single"] = view._single.view(_Points)
    monkeypatch.setattr(_Points, "written", 0)
    return view


@pytest.mark.parametrize(("fov", "sees"), [((90.0, 90.0), True), ((50.0, 90.0), False), ((90.0, 50.0), True)])
def test_a_pinhole_has_its_own_angles(fov: tuple[float, float], sees: bool) -> None:
    """A turn of 60 degrees to the side leaves nothing in common where the image is narrower than that."""
    overlap = PinholeView(*fov).overlap(camera(0.0)[None], camera(60.0)[None])
    assert (overlap.item() > 0) is sees


def _covers(view, current: Tensor, remembered: Tensor) -> Tensor:
    return Sight.of(view, current, remembered).covers


def _pairs() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    pairs = []
    for _ in range(12):
        yaw, pitch, *centre = (torch.randn(5, generator=draw) * torch.tensor([20.0, 6.0, 1.0, 0.3, 1.0])).tolist()
        pairs.append((camera(0.0), camera(yaw, pitch, tuple(centre))))
    return pairs


def test_points_are_as_exact_as_the_models_own_sampler() -> None:
    million, own = ball(1_000_000), ball(seed=1)
    exact = [sampled_overlap(million, a, b) for a, b in _pairs()]
    ours = [float(VIEW.overlap(a[None], b[None])) for a, b in _pairs()]
    assert _rms(ours, exact) <= 0.008
    assert _rms(ours, exact) <= 1.5 * _rms([sampled_overlap(own, a, b) for a, b in _pairs()], exact)


def _rms(found: list[float], exact: list[float]) -> float:
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(found, exact, strict=True)) / len(exact))


def test_a_pair_writes_a_fiftieth_of_what_the_models_own_sampler_does(counted: AngularView) -> None:
    """And no angle among it: in time it is less than a hundredth (tests/benchmarks/test_views.py)."""
    here, there = camera(0)[None], torch.stack([camera(3 * n, 0, (0.08 * n, 0, 0)) for n in range(24)])
    points = ball()
    with _Elements() as ours:
        counted.overlap(here, there)
    with _Elements() as theirs:
        sampled_overlap(points, here[0], there[1])
    assert 50 * (ours.written + _Points.written) / 24 <= theirs.written
    assert _Points.written >= 24 * counted.count


def test_cameras_too_far_apart_are_not_looked_at(counted: AngularView) -> None:
    apart = torch.stack([camera(0, 0, (0, 0, -20)), camera(0, 0, (0, 0, -1)), camera(170)])
    overlap = counted.overlap(camera(0)[None], apart)[0]
    assert overlap[0] == 0 and overlap[1] > 0.6 and overlap[2] == 0
    all_three, _Points.written = _Points.written, 0
    assert torch.equal(counted.overlap(camera(0)[None], apart[1:])[0], overlap[1:])
    assert _Points.written == all_three > 0


@pytest.mark.parametrize("view", [VIEW, AngularView(100, 80, 3.0), AngularView(170, 20)])
def test_sides_of_planes_and_cones_are_the_angles(view: AngularView) -> None:
    draw = torch.Generator().manual_seed(0)
    turns = 60 * torch.randn(40, 2, generator=draw)
    cameras = torch.stack([camera(y, p.clamp(-85, 85), tuple(torch.randn(3, generator=draw))) for y, p in turns])
    seen = _covers(view, cameras[:2], cameras)
    for current, row in zip(cameras[:2], seen, strict=True):
        for remembered, found in zip(cameras, row, strict=True):
            assert torch.equal(found, _by_angles(view, current @ torch.linalg.inv(remembered)))


def _by_angles(view: AngularView, pose: Tensor) -> Tensor:
    x, y, z = (view.points - pose[:3, 3]).unbind(-1)
    forward = pose[:3, 2]
    azimuth = torch.rad2deg(torch.atan2(x, z) - torch.atan2(forward[0], forward[2]))
    pitch = torch.atan2(forward[1], torch.hypot(forward[0], forward[2]))
    elevation = torch.rad2deg(torch.atan2(y, torch.hypot(x, z)) - pitch)
    inside = (torch.remainder(azimuth + 180, 360) - 180).abs() < view.horizontal / 2
    return inside & (elevation.abs() < view.vertical / 2) & (x * x + y * y + z * z <= view.radius**2)


def test_a_field_of_view_that_does_not_exist_is_refused() -> None:
    with pytest.raises(OptionError, match="no such field of view"):
        AngularView(horizontal=180.0)


@pytest.mark.parametrize(
    ("yaw", "pitch", "share"), [(0, 0, 1.0), (18, 0, 0.7), (60, 0, 0.0), (0, 35, 0.0), (90, 0, 0.0)]
)
def test_turning_on_the_spot_has_a_closed_form(yaw: float, pitch: float, share: float) -> None:
    assert float(VIEW.overlap(camera(0)[None], camera(yaw, pitch)[None])) == pytest.approx(share, abs=1e-6)


def test_the_closed_form_agrees_with_points() -> None:
    turned = camera(11, 4)
    exact = float(VIEW.overlap(camera(0)[None], turned[None]))
    assert exact == pytest.approx(sampled_overlap(ball(1_000_000), camera(0), turned), abs=3e-3)
    assert exact == pytest.approx(float(_covers(VIEW, camera(0)[None], turned[None]).double().mean()), abs=1e-2)


def test_overlaps_come_in_one_batch_and_are_repeatable() -> None:
    cameras = torch.stack([camera(3 * n, 0, (0.08 * n, 0, 0)) for n in range(12)])
    table = VIEW.overlap(cameras[-4:], cameras)
    assert table.shape == (4, 12)
    assert torch.equal(table, VIEW.overlap(cameras[-4:], cameras))
    assert table[3, 11] == 1.0


def test_a_pinhole_frustum_sees_itself_and_nothing_behind() -> None:
    view = PinholeView()
    both = torch.stack([camera(0), camera(180)])
    overlap = view.overlap(camera(0)[None], both)[0]
    assert overlap[0] > 0.75  # the grid's own border points lie on the frustum's far plane
    assert overlap[1] == 0.0


def test_a_pinhole_frustum_is_matrix_games_grid() -> None:
    """1,000 grid points in tangent units, seen where 0.1 < z < 30 and the projection lies in a 1280x720 image."""
    view = PinholeView()
    here, there = camera(0), torch.stack([camera(25, 4, (1.0, 0.2, -2.0)), camera(-70), camera(5, -10, (0, 0, 3.0))])
    steps = [(x, y) for x in range(10) for y in range(10)]
    for remembered, overlap in zip(there, view.overlap(here[None], there)[0], strict=True):
        seen = 0
        for x, y in steps:
            for z in torch.linspace(0.1, 30, 10, dtype=torch.float64):
                tangents = torch.tensor([2 * x / 9 - 1, 2 * y / 9 - 1, 1.0], dtype=torch.float64)
                world = torch.linalg.inv(here) @ torch.cat([tangents * z, torch.ones(1, dtype=torch.float64)])
                u, v, depth, _ = remembered @ world
                column, line = 640 * u / depth + 640, 360 * v / depth + 360
                seen += bool(0.1 < depth < 30 and 0 <= column <= 1280 and 0 <= line <= 720)
        assert float(overlap) == seen / 1000
