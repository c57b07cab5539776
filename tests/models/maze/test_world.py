"""The world with truth: the same everywhere, drawn as geometry says, and walked through without meeting a wall."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from torch import Tensor

from lightint_compile.errors import InputError
from lightint_compile.models.camera_paths.poses import invert_rigid
from lightint_compile.models.maze import Maze, MazePath, novel, protocol, recorded, render
from lightint_compile.models.maze.hashing import draw, uniform
from lightint_compile.models.maze.paths import MARGIN, square_intrinsics
from lightint_compile.models.maze.render import render_frames
from lightint_compile.models.maze.textures import TEXELS, pattern_table, unpacked
from lightint_compile.models.maze.world import CELLS, FLOOR
from lightint_compile.models.worldplay.trajectory import parse_pose_string

SIZE = 16

DRAWN = [4272258953, 384414554, 3256954511]
WORLD = {"walls": "b90fbb639b53899d", "patterns": "d8f6c914115ffa52", "colours": "e91b5892123003d1"}
FRAME_MEANS = [0.45, 0.463]


@pytest.fixture(scope="module")
def maze() -> Maze:
    return Maze.from_seed(3)


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


def test_a_seed_is_one_maze_for_ever(maze: Maze) -> None:
    assert [int(each) for each in draw(torch.tensor([0, 1, 2**30]), 7, 5)] == DRAWN
    assert {"walls": _digest(maze.walls), "patterns": _digest(maze.patterns), "colours": _digest(maze.colours)} == WORLD


def test_mazes_made_together_are_those_made_alone(maze: Maze) -> None:
    several = Maze.from_seeds([8, 3])
    for name in ("walls", "patterns", "colours"):
        assert torch.equal(getattr(several[1], name), getattr(maze, name))
    assert not torch.equal(several[0].walls, maze.walls)


def test_frames_of_a_seed_are_the_same_to_a_level_of_256(maze: Maze) -> None:
    path = protocol(maze, "w+left-7")
    frames, _ = render(maze, path.placed, path.intrinsics, SIZE)
    assert tuple(frames.shape) == (8, 3, SIZE, SIZE)
    means = [round(float(frames[number].mean()), 3) for number in (0, 7)]
    assert means == pytest.approx(FRAME_MEANS, abs=2e-3)


def test_every_maze_is_closed_and_in_one_piece() -> None:
    mazes = Maze.from_seeds(range(20))
    edge = torch.ones(CELLS, CELLS, dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    assert mazes.walls[:, edge].all()
    for walls in mazes.walls:
        reached = torch.zeros_like(walls)
        reached.view(-1)[int((~walls).flatten().long().argmax())] = True
        for _ in range(CELLS * CELLS):
            wider = torch.nn.functional.max_pool2d(reached[None].float(), (3, 1), 1, (1, 0)).bool()
            wider |= torch.nn.functional.max_pool2d(reached[None].float(), (1, 3), 1, (0, 1)).bool()
            reached = wider[0] & ~walls
        assert torch.equal(reached, ~walls)


def test_numbers_are_spread_evenly() -> None:
    drawn = uniform(torch.arange(4096), 3)
    assert abs(float(drawn.mean()) - 0.5) < 0.02
    assert abs(float(drawn.std()) - math.sqrt(1 / 12)) < 0.02
    assert abs(float((drawn[1:] * drawn[:-1]).mean()) - 0.25) < 0.02


def _hit(maze: Maze, origin: list[float], direction: list[float]) -> tuple[float, tuple[int, int], int, float, float]:
    """Depth, cell (row, column), face, across and down of one ray, found by trying every plane of the world."""
    best = (math.inf, (0, 0), 0, 0.0, 0.0)
    for axis, level in [(0, float(i)) for i in range(CELLS + 1)] + [(2, float(i)) for i in range(CELLS + 1)]:
        if abs(direction[axis]) < 1e-12:
            continue
        depth = (level - origin[axis]) / direction[axis]
        point = [o + d * depth for o, d in zip(origin, direction, strict=True)]
        other = 2 - axis
        along, beyond = math.floor(point[other]), int(level) if direction[axis] > 0 else int(level) - 1
        row, column = (along, beyond) if axis == 0 else (beyond, along)
        if 0 < depth < best[0] and 0 <= row < CELLS and 0 <= column < CELLS and bool(maze.walls[0, row, column]):
            face = (1 if direction[0] < 0 else 0) if axis == 0 else (3 if direction[2] < 0 else 2)
            best = (depth, (row, column), face, point[other] - along, point[1] + 0.5)
    for level, face in ((0.5, FLOOR), (-0.5, FLOOR + 1)):
        depth = (level - origin[1]) / direction[1] if abs(direction[1]) > 1e-12 else math.inf
        if 0 < depth < best[0]:
            x, z = origin[0] + direction[0] * depth, origin[2] + direction[2] * depth
            best = (depth, (math.floor(z), math.floor(x)), face, x - math.floor(x), z - math.floor(z))
    return best


def _slow_frame(maze: Maze, pose: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """A frame and its depth, ray by ray, in Python's numbers."""
    table, shades = pattern_table(), (0.8, 0.8, 1.0, 1.0, 0.75, 0.9)
    focal = float(square_intrinsics()[0, 0])
    origin, rotation = pose[:3, 3].tolist(), pose[:3, :3]

    def ray(row: float, column: float) -> tuple[float, tuple[int, int], int, float, float]:
        camera = torch.tensor([(column / size - 0.5) / focal, (row / size - 0.5) / focal, 1.0], dtype=torch.float64)
        return _hit(maze, origin, (rotation @ camera).tolist())

    def colour(row: float, column: float) -> Tensor:
        depth, (z, x), face, across, down = ray(row, column)
        texel = table[maze.patterns[0, z, x, face].long(), int(down * TEXELS), int(across * TEXELS)]
        clear = 1.0 / (1.0 + (depth / 7.0) ** 2)
        return unpacked(maze.colours[0, z, x, face, texel.long()]) * clear * shades[face] + 0.12 * (1.0 - clear)

    frame, depth = torch.zeros(3, size, size), torch.zeros(size, size)
    for row in range(size):
        for column in range(size):
            depth[row, column] = ray(row + 0.5, column + 0.5)[0]
            parts = [colour(row + a, column + b) for a in (0.25, 0.75) for b in (0.25, 0.75)]
            frame[:, row, column] = torch.stack(parts).mean(0)
    return frame, depth


@pytest.mark.parametrize("seed", [3, 11])
def test_the_ray_caster_draws_what_a_loop_over_rays_draws(seed: int) -> None:
    maze = Maze.from_seed(seed)
    path = novel(maze, 40, seed)
    tilt = torch.eye(4, dtype=torch.float64)
    cos, sin = math.cos(0.3), math.sin(0.3)
    tilt[1, 1], tilt[1, 2], tilt[2, 1], tilt[2, 2] = cos, -sin, sin, cos
    poses = torch.stack([invert_rigid(path.placed)[0], invert_rigid(path.placed)[39] @ tilt])
    frames, depth = render(maze, invert_rigid(poses), square_intrinsics(), SIZE)
    for number in range(2):
        expected, far = _slow_frame(maze, poses[number], SIZE)
        torch.testing.assert_close(depth[number], far, rtol=1e-4, atol=1e-4)
        off = (frames[number] - expected).abs().amax(0) > 0.01
        assert int(off.sum()) <= 2, "rays on an edge may fall to either side"


def test_a_wall_in_front_is_as_far_as_the_grid_says(maze: Maze) -> None:
    path = protocol(maze, "left-1")
    row, column = (int(each) for each in (~maze.walls[0]).nonzero()[0])
    pose = torch.eye(4, dtype=torch.float64)
    pose[0, 3], pose[2, 3] = column + 0.5, row + 0.25
    ahead = next(step for step in range(CELLS) if bool(maze.walls[0, row + step, column]))
    _, depth = render(maze, invert_rigid(pose)[None], path.intrinsics[0], 15)
    assert float(depth[0, 7, 7]) == pytest.approx(ahead - 0.25, abs=1e-5)


def test_points_are_seen_where_the_models_conventions_put_them(maze: Maze) -> None:
    path = novel(maze, 16, 5)
    _, depth = render(maze, path.placed, path.intrinsics, SIZE)
    pixel = (torch.arange(SIZE).double() + 0.5) / SIZE
    y, x = torch.meshgrid(pixel, pixel, indexing="ij")
    ray = torch.stack([(x - 0.5) / 0.7, (y - 0.5) / 0.7, torch.ones_like(x)], dim=-1)
    for number in (0, 15):
        seen = ray * depth[number, ..., None].double()
        pose = invert_rigid(path.placed)[number]
        world = seen @ pose[:3, :3].T + pose[:3, 3]
        floor = world[..., 1] > 0.499
        assert torch.allclose(world[..., 1][floor], torch.tensor(0.5, dtype=torch.float64), atol=1e-4)
        assert floor[-1].any() and not floor[0].any(), "y points down"
        wall = ~floor & (world[..., 1] > -0.499)
        off_grid = torch.minimum(*((world[..., each] - world[..., each].round()).abs() for each in (0, 2)))
        assert wall.any() and float(off_grid[wall].max()) < 1e-3


def _clear(maze: Maze, path: MazePath, margin: float) -> bool:
    centres = path.centres
    between = [torch.lerp(centres[:-1], centres[1:], share) for share in (0.0, 0.25, 0.5, 0.75)]
    places = torch.cat([*between, centres[-1:]])[:, [0, 2]]
    return bool(maze.is_clear(places[None], margin).all()) and float(path.centres[:, 1].abs().max()) < 0.4


@pytest.mark.parametrize("text", ["left-31,right-32", "w-31,s-32", "w+left-15,a-8"])
def test_a_protocol_is_the_models_path_and_meets_no_wall(text: str) -> None:
    for seed in range(5):
        maze = Maze.from_seed(seed)
        path = protocol(maze, text, seed)
        assert _clear(maze, path, MARGIN - 1e-6)
        torch.testing.assert_close(invert_rigid(path.extrinsics.double()), parse_pose_string(text), atol=1e-5, rtol=0)
        start = invert_rigid(path.placed[:1])[0]
        torch.testing.assert_close(start, path.start, atol=1e-6, rtol=0)


def test_places_differ_by_seed_and_are_kept_by_it(maze: Maze) -> None:
    first, again, other = (protocol(maze, "w-7", seed) for seed in (0, 0, 1))
    assert torch.equal(first.placed, again.placed)
    assert not torch.equal(first.start, other.start)


def test_exploration_goes_on_to_new_cells() -> None:
    for seed in range(6):
        maze = Maze.from_seed(seed)
        path = novel(maze, 256, seed)
        assert _clear(maze, path, MARGIN)
        cells = [tuple(each) for each in path.centres[:, [0, 2]].floor().long().tolist()]
        entered = [cell for before, cell in zip([None, *cells], cells, strict=False) if cell != before]
        assert len(entered) >= 6
        assert len(set(entered)) >= 0.8 * len(entered)
        steps = (path.centres[1:] - path.centres[:-1]).norm(dim=-1)
        assert float(steps.max()) < 0.081


def test_a_recorded_walk_is_placed_and_made_smaller_where_it_has_to_be(maze: Maze) -> None:
    times = torch.linspace(0.0, 4.0, 60)
    poses = torch.eye(4, dtype=torch.float64).repeat(60, 1, 1)
    poses[:, 0, 3], poses[:, 2, 3] = 4.0 * times.sin(), 4.0 * times
    path = recorded(maze, poses, times, 32)
    assert len(path) == 32
    assert _clear(maze, path, MARGIN - 1e-6)
    long = poses.clone()
    long[:, 2, 3] *= 50
    assert _clear(maze, recorded(maze, long, times, 512), MARGIN - 1e-6)


def test_a_path_that_fits_nowhere_says_so(maze: Maze) -> None:
    with pytest.raises(InputError, match="meets a wall wherever it starts"):
        protocol(maze, "w-400")


def test_cameras_that_are_no_group_a_maze_are_refused(maze: Maze) -> None:
    with pytest.raises(InputError, match="one group of cameras a maze"):
        render_frames(Maze.from_seeds([1, 2]), torch.eye(4)[None], square_intrinsics(), SIZE)
    with pytest.raises(InputError, match="one maze"):
        protocol(Maze.from_seeds([1, 2]), "w-3")
