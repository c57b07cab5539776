"""Camera walks to train on: keys held for a while, ways out and back, unsteady hands; many mazes at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightint_compile.models.maze.hashing import below, draw, uniform
from lightint_compile.models.maze.paths import MARGIN
from lightint_compile.models.maze.world import CELLS, Maze
from lightint_compile.models.worldplay.trajectory import MOVE_SPEED, TURN_SPEED

TRAINING_SEEDS = 1 << 20
"""The first seed of a maze to train on; mazes that judge a model have seeds below 2^16."""

_SWAY = 0.05
"""Most that an unsteady hand moves the camera to a side."""

# forward, right, turn; the more often a row stands here, the more often it is chosen
_COMMANDS = (
    *((1, 0, 0), (1, 0, 0), (1, 0, 0), (1, 0, 0), (-1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0)),
    *((0, 0, 1), (0, 0, 1), (0, 0, 1), (0, 0, -1), (0, 0, -1), (0, 0, -1)),
    *((1, 0, 1), (1, 0, 1), (1, 0, -1), (1, 0, -1), (0, 1, -1), (0, -1, 1), (0, 0, 0)),
)


def walks(maze: Maze, frames: int) -> Tensor:
    """Camera-to-world poses [mazes, frames, 4, 4], float64, of a walk through each maze; a function of its seed.

    A third of the walks holds one key, the others change it now and then; half of all turn round after 6 to 48 frames
    and come back exactly; a third is unsteady.
    """
    forward, right, turn = _commands(maze.seeds, frames)
    x, z, yaw = _start(maze)
    escape = 1.0 - 2.0 * below(2, maze.seeds, 44).double()
    track, blocked = [], torch.zeros_like(x, dtype=torch.bool)
    for frame in range(frames):
        track.append(torch.stack([x, z, yaw], dim=-1))
        free_turn = torch.where(blocked & (turn[:, frame] == 0), escape * TURN_SPEED, turn[:, frame])
        yaw = yaw + free_turn
        ahead_x = x + yaw.sin() * forward[:, frame] + yaw.cos() * right[:, frame]
        ahead_z = z + yaw.cos() * forward[:, frame] - yaw.sin() * right[:, frame]
        clear = maze.is_clear(torch.stack([ahead_x, ahead_z], dim=-1), MARGIN + _SWAY)
        x, z, blocked = torch.where(clear, ahead_x, x), torch.where(clear, ahead_z, z), ~clear
    poses = _poses(torch.stack(track, dim=1), _unsteady(maze.seeds, frames))
    order = _there_and_back(maze.seeds, frames)
    return poses.gather(1, order[..., None, None].expand_as(poses))


def _commands(seeds: Tensor, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """Forward and right in scene units and turn in radians of every frame, each [mazes, frames]."""
    number = torch.arange(frames, device=seeds.device)
    rows = seeds[:, None]
    often = torch.tensor([0, 0, 6, 14], device=seeds.device)[below(4, rows, 41)]
    changed = (below(144, rows, 42, number) < often) | (number == 0)
    since = torch.where(changed, number, 0).cummax(dim=1).values
    table = torch.tensor(_COMMANDS, dtype=torch.float64, device=seeds.device)
    chosen = table[below(len(_COMMANDS), rows, 43, since)]
    move, turn = (_pace(rows, key) for key in (45, 46))
    return chosen[..., 0] * move * MOVE_SPEED, chosen[..., 1] * move * MOVE_SPEED, chosen[..., 2] * turn * TURN_SPEED


def _pace(rows: Tensor, key: int) -> Tensor:
    """1 for most walks, else 0.4 to 1.6."""
    return torch.where(uniform(rows, key, 0) < 0.6, 1.0, 0.4 + 1.2 * uniform(rows, key, 1))


def _start(maze: Maze) -> tuple[Tensor, Tensor, Tensor]:
    """A place in a free cell and a heading, each [mazes]."""
    cells = draw(maze.seeds[:, None], 47, torch.arange(CELLS * CELLS, device=maze.seeds.device))
    cell = torch.where(maze.walls.flatten(1), -1, cells).argmax(dim=1)
    spread = 2 * (0.5 - MARGIN - _SWAY)
    x = cell % CELLS + 0.5 + spread * (uniform(maze.seeds, 48) - 0.5)
    z = cell // CELLS + 0.5 + spread * (uniform(maze.seeds, 49) - 0.5)
    return x, z, 2 * math.pi * uniform(maze.seeds, 50)


def _unsteady(seeds: Tensor, frames: int) -> Tensor:
    """Additions [mazes, frames, 6] to yaw, pitch, roll (radians), right, down, forward; zero for steady walks."""
    time = torch.arange(frames, device=seeds.device, dtype=torch.float64)
    rows = seeds[:, None, None]
    axis = torch.arange(6, device=seeds.device)
    strength = torch.where(uniform(rows, 51) < 0.35, uniform(rows, 52), 0.0)
    most = torch.tensor([0.06, 0.1, 0.05, 0.03, 0.04, 0.0], dtype=torch.float64, device=seeds.device)
    total = torch.zeros(len(seeds), frames, 6, dtype=torch.float64, device=seeds.device)
    for wave in range(3):
        rate = 0.3 * uniform(rows, 53, wave, axis).square()
        phase = uniform(rows, 54, wave, axis)
        total += (2 * math.pi * (rate * time[:, None] + phase)).sin() / 2.0
    nod = (
        torch.where(uniform(rows, 55) < 0.15, 0.3, 0.0) * (2 * math.pi * (time[:, None] / 48 + uniform(rows, 56))).sin()
    )
    total = total.clamp(-1.0, 1.0) * most * strength
    total[..., 1:2] += nod
    return total


def _poses(track: Tensor, extra: Tensor) -> Tensor:
    """Poses [mazes, frames, 4, 4] of places and headings [mazes, frames, 3] (x, z, yaw) and what unsteadiness adds."""
    zero = torch.zeros_like(track[..., 0])
    yaw, pitch, roll = track[..., 2] + extra[..., 0], extra[..., 1], extra[..., 2]
    rotation = _about(yaw, 0, 2) @ _about(-pitch, 1, 2) @ _about(roll, 0, 1)
    heading = _about(track[..., 2], 0, 2)
    sway = (heading @ extra[..., 3:6, None])[..., 0]
    centre = torch.stack([track[..., 0], zero, track[..., 1]], dim=-1) + sway
    poses = torch.eye(4, dtype=track.dtype, device=track.device).repeat(*track.shape[:2], 1, 1)
    poses[..., :3, :3], poses[..., :3, 3] = rotation, centre
    return poses


def _about(angle: Tensor, first: int, second: int) -> Tensor:
    """Rotations [..., 3, 3] that turn axis `second` towards axis `first`."""
    matrices = torch.eye(3, dtype=angle.dtype, device=angle.device).repeat(*angle.shape, 1, 1)
    matrices[..., first, first] = matrices[..., second, second] = angle.cos()
    matrices[..., first, second], matrices[..., second, first] = angle.sin(), -angle.sin()
    return matrices


def _there_and_back(seeds: Tensor, frames: int) -> Tensor:
    """Which frame of the way out every frame is [mazes, frames]: its own, or to and fro between two turning points."""
    number = torch.arange(frames, device=seeds.device).expand(len(seeds), frames)
    turning = 6 + below(43, seeds, 57)[:, None]
    folded = turning - (number % (2 * turning) - turning).abs()
    return torch.where(below(2, seeds, 58)[:, None] == 0, folded.clamp_max(frames - 1), number)
