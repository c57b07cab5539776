"""Camera paths through free space: keys held, exploration without return, and recorded walks."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from lightint_compile.errors import InputError

from ..camera_paths.poses import check_rigid, invert_rigid, relative_to_first, resample, scale_to_speed
from ..worldplay.trajectory import MOVE_SPEED, TURN_SPEED, Trajectory, parse_pose_string
from .hashing import draw, uniform
from .world import Maze

FOCAL = 0.7
"""Focal length over the image's side: 71 degrees of view."""

MARGIN = 0.25
"""Least distance, in scene units, of a camera from a wall."""

_HEADROOM = 0.35
"""Largest distance of a camera from the middle between floor and ceiling."""

_HEADINGS = 16
_AT_ONCE = 16
_FINEST = 0.05
"""Scene units between the places of a path that are checked for walls."""


@dataclass(frozen=True)
class MazePath(Trajectory):
    """A trajectory and where it is in its maze: `start` [4, 4], float64, is the first camera, camera-to-world."""

    start: Tensor

    @property
    def placed(self) -> Tensor:
        """World-to-camera matrices [frames, 4, 4], float64, in the maze's coordinates: what `render` takes."""
        return self.extrinsics.double() @ invert_rigid(self.start)

    @property
    def centres(self) -> Tensor:
        """Where the cameras are in the maze, [frames, 3], float64."""
        return invert_rigid(self.placed)[:, :3, 3]

    @classmethod
    def from_placed(cls, poses: Tensor) -> Self:
        """From camera-to-world poses [frames, 4, 4] in the maze."""
        relative = Trajectory.from_poses(poses, square_intrinsics())
        return cls(relative.extrinsics, relative.intrinsics, relative.actions, poses[0].double())

    def first(self, frames: int) -> Self:
        """The path's first frames."""
        return type(self)(self.extrinsics[:frames], self.intrinsics[:frames], self.actions[:frames], self.start)


def square_intrinsics() -> Tensor:
    """Intrinsics [3, 3] over the image size of every camera in a maze."""
    return torch.tensor([[FOCAL, 0.0, 0.5], [0.0, FOCAL, 0.5], [0.0, 0.0, 1.0]])


def protocol(maze: Maze, text: str, seed: int = 0) -> MazePath:
    """The path of a pose string such as `"left-31,right-32"`, placed where it meets no wall; `seed` picks the place.

    Raises:
        InputError: a bad pose string, several mazes, or a path that fits nowhere.
    """
    return _placed(_single(maze), parse_pose_string(text), seed, f"the path {text!r}")


def there_and_back(maze: Maze, text: str, frames: int, seed: int = 0) -> MazePath:
    """The way of a pose string and back the same way, to and fro for `frames` latent frames.

    Raises:
        InputError: as of `protocol`.
    """
    out = protocol(maze, text, seed)
    turn = max(len(out) - 1, 1)
    places = turn - (torch.arange(frames) % (2 * turn) - turn).abs()
    return MazePath.from_placed(invert_rigid(out.placed)[places])


def recorded(maze: Maze, poses: Tensor, times: Tensor, frames: int, seed: int = 0) -> MazePath:
    """A recorded walk as `frames` latent frames at the model's speed, placed into free space.

    `poses` [n, 4, 4] are camera-to-world at `times` [n]. Where it fits nowhere it is made smaller by tenths.

    Raises:
        InputError: poses that are not rigid, times that do not increase, or several mazes.
    """
    check_rigid(poses, "poses")
    walk = relative_to_first(scale_to_speed(resample(poses, times, frames), MOVE_SPEED))
    single = _single(maze)
    for _ in range(_SHRINKS):
        found = _place(single, walk, seed)
        if found is not None:
            return MazePath.from_placed(found)
        walk = walk.clone()
        walk[:, :3, 3] *= 0.9
    raise InputError("The path fits nowhere.", where="poses", why="its maze has no free place", fix="use another maze")


_SHRINKS = 60


def _single(maze: Maze) -> Maze:
    if len(maze) != 1:
        raise InputError("A path is through one maze.", where="maze", why=f"there are {len(maze)}", fix="index one")
    return maze.to("cpu")


def _placed(maze: Maze, walk: Tensor, seed: int, name: str) -> MazePath:
    found = _place(maze, walk, seed)
    if found is None:
        why = f"{name} meets a wall wherever it starts"
        raise InputError("The path fits nowhere.", where="maze", why=why, fix="walk a shorter way, or use another maze")
    return MazePath.from_placed(found)


def _place(maze: Maze, walk: Tensor, seed: int) -> Tensor | None:
    """Camera-to-world poses of the walk at the first of all starts, in an order drawn from the seed, that fits."""
    if float(walk[:, 1, 3].abs().max()) > _HEADROOM:
        return None
    row, column = (~maze.walls[0]).nonzero().unbind(-1)
    shifts = torch.tensor([0.5, 0.3, 0.7], dtype=torch.float64)
    starts = torch.stack([(each[:, None].double() + shifts).flatten() for each in (column, row)], dim=-1)
    angles = torch.arange(_HEADINGS, dtype=torch.float64) * (2 * math.pi / _HEADINGS)
    left = torch.arange(len(starts) * _HEADINGS)
    # A few points of the walk at a time: most starts meet a wall soon.
    for centres in _dense(walk[:, :3, 3]).split(_AT_ONCE):
        places = starts[left // _HEADINGS, None] + _turned(centres, angles)[left % _HEADINGS]
        left = left[maze.is_clear(places[None], MARGIN)[0].all(-1)]
    if not len(left):
        return None
    order = draw(torch.tensor(seed), maze.seeds[0], left)
    start, heading = divmod(int(left[order.argmax()]), _HEADINGS)
    x, z = starts[start].tolist()
    return _pose(x, z, float(angles[heading])) @ walk


def _turned(centres: Tensor, angles: Tensor) -> Tensor:
    """Centres [n, 3] as (x, z) turned by angles, [angles, n, 2]."""
    cosine, sine = angles.cos()[:, None], angles.sin()[:, None]
    x, z = centres[:, 0], centres[:, 2]
    return torch.stack([cosine * x + sine * z, cosine * z - sine * x], dim=-1)


def _dense(centres: Tensor) -> Tensor:
    """Centres [n, 3] and points between them, at most `_FINEST` apart."""
    longest = float((centres[1:] - centres[:-1]).norm(dim=-1).max()) if len(centres) > 1 else 0.0
    parts = max(1, math.ceil(longest / _FINEST))
    share = torch.arange(parts, dtype=torch.float64)[:, None] / parts
    between = torch.lerp(centres[:-1, None], centres[1:, None], share)
    return torch.cat([between.flatten(0, 1), centres[-1:]])


def _pose(x: float, z: float, yaw: float) -> Tensor:
    """Camera-to-world [4, 4] at eye height; yaw turns from +z to +x."""
    pose = torch.eye(4, dtype=torch.float64)
    pose[0, 0], pose[0, 2], pose[2, 0], pose[2, 2] = math.cos(yaw), math.sin(yaw), -math.sin(yaw), math.cos(yaw)
    pose[0, 3], pose[2, 3] = x, z
    return pose


def novel(maze: Maze, frames: int, seed: int = 0) -> MazePath:
    """Exploration: always on to the farthest cell that was not visited, along the middle of the cells.

    The camera looks where it goes, turns by 3 degrees a frame at most and walks at the model's speed as far as it looks
    there. The path comes back to a visited cell only where a dead end leaves no other way.
    """
    free = ~_single(maze).walls[0].numpy()
    cells = np.argwhere(free)
    row, column = cells[int(draw(torch.tensor(seed), 31, maze.seeds[0].cpu())) % len(cells)].tolist()
    route = _route(free, (row, column), frames * MOVE_SPEED + 2.0)
    yaw = float(uniform(torch.tensor(seed), 32, maze.seeds[0].cpu())) - 0.5
    return MazePath.from_placed(_follow(route, frames, yaw))


def _route(free: np.ndarray, start: tuple[int, int], length: float) -> np.ndarray:
    """Middles (x, z) of the cells of a walk of at least `length`, each next leg to the farthest unvisited cell."""
    cells, visited = [start], {start}
    while len(cells) <= length + 1:
        leg = _leg(free, cells[-1], visited)
        if len(leg) < 2:
            leg, visited = _leg(free, cells[-1], {cells[-1]}), {cells[-1]}
        cells += leg[1:]
        visited |= set(leg)
    return np.array([(column + 0.5, row + 0.5) for row, column in cells])


def _leg(free: np.ndarray, start: tuple[int, int], visited: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """Cells to the farthest one that can be reached over unvisited cells, else over any to an unvisited one."""
    return _search(free, start, visited, blocked=True) or _search(free, start, visited, blocked=False) or [start]


def _search(
    free: np.ndarray, start: tuple[int, int], visited: set[tuple[int, int]], blocked: bool
) -> list[tuple[int, int]]:
    came: dict[tuple[int, int], tuple[int, int] | None] = {start: None}
    waiting, last = deque([start]), start
    while waiting:
        cell = waiting.popleft()
        last = cell if cell not in visited else last
        for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            other = (cell[0] + down, cell[1] + right)
            if free[other] and other not in came and not (blocked and other in visited):
                came[other] = cell
                waiting.append(other)
    return _way_to(last, came) if last != start else []


def _way_to(cell: tuple[int, int], came: dict[tuple[int, int], tuple[int, int] | None]) -> list[tuple[int, int]]:
    way = [cell]
    while (before := came[way[-1]]) is not None:
        way.append(before)
    return way[::-1]


def _follow(route: np.ndarray, frames: int, yaw: float) -> Tensor:
    """Poses along a route: on by the model's speed times how well the camera looks where it goes."""
    ahead = _at(route, 0.5) - route[0]
    heading, along = math.atan2(ahead[0], ahead[1]) + yaw, 0.0
    poses = []
    for _ in range(frames):
        x, z = _at(route, along)
        poses.append(_pose(float(x), float(z), heading))
        target = _at(route, along + 0.6) - (x, z)
        off = math.remainder(math.atan2(target[0], target[1]) - heading, 2 * math.pi)
        heading += max(-TURN_SPEED, min(TURN_SPEED, off))
        along += MOVE_SPEED * max(0.0, math.cos(1.5 * max(-1.0, min(1.0, off))))
    return torch.stack(poses)


def _at(route: np.ndarray, along: float) -> np.ndarray:
    """The point of a route of unit steps that is `along` from its start."""
    index = min(int(along), len(route) - 2)
    return np.asarray(route[index] + (route[index + 1] - route[index]) * (along - index))
