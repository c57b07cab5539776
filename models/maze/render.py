"""A batched ray caster: every pixel of every frame at once, by marching over the grid lines that its rays cross.

The method is Amanatides and Woo's (1987). Rays are those of a pinhole camera, `direction = R^T ((x - c) / f, (y - c)
/ f, 1)` with image coordinates and intrinsics over the image size, so the length along a ray is the depth.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from lightint_compile.errors import InputError

from ..camera_paths.poses import invert_rigid
from .compiled import Compiled
from .textures import TEXELS, pattern_table, unpacked
from .world import CEILING, CELLS, FACES, FLOOR, Maze

SAMPLES = 2
"""Rays along each side of a pixel: four a pixel are averaged."""

CROSSINGS = 2 * (CELLS - 2) + 2
"""Grid lines that a ray can cross between two walls of the outermost ring, and one more."""

_SHADES = (0.8, 0.8, 1.0, 1.0, 0.75, 0.9)
"""Brightness of the faces, in the order of `FACES`."""

_HAZE, _HAZE_DISTANCE = 0.12, 7.0

_FRAMES_AT_ONCE = {"cpu": 8, "cuda": 256}


class Hits(NamedTuple):
    """What rays [frames, rays] meet: `depth` along the ray, `face` number over all mazes, and the texel, row major."""

    depth: Tensor
    face: Tensor
    texel: Tensor


def render(maze: Maze, extrinsics: Tensor, intrinsics: Tensor, size: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Frames [F, 3, H, W] in [0, 1] and depth [F, H, W], float32, of cameras in a maze.

    `extrinsics` [F, 4, 4] are world-to-camera in the maze's coordinates, `intrinsics` [3, 3] or [F, 3, 3] over the
    image size, `size` pixels of a side or (height, width). Of several mazes, extrinsics [mazes, F, 4, 4] give
    [mazes, F, ...]. Depth is along the camera's axis, of the ray through the middle of a pixel.

    Raises:
        InputError: cameras that are not one group a maze.
    """
    frames = render_frames(maze, extrinsics, intrinsics, size)
    return frames, render_depth(maze, extrinsics, intrinsics, size)


def render_frames(maze: Maze, extrinsics: Tensor, intrinsics: Tensor, size: int | tuple[int, int]) -> Tensor:
    """The frames of `render` alone."""
    height, width = _sides(size)
    parts = [
        _shaded(hits, maze, height, width) for hits in _hits(maze, extrinsics, intrinsics, (height, width), SAMPLES)
    ]
    return torch.cat(parts).unflatten(0, extrinsics.shape[:-2])


def render_depth(maze: Maze, extrinsics: Tensor, intrinsics: Tensor, size: int | tuple[int, int]) -> Tensor:
    """The depth of `render` alone."""
    height, width = _sides(size)
    parts = [hits.depth for hits in _hits(maze, extrinsics, intrinsics, (height, width), 1)]
    return torch.cat(parts).unflatten(-1, (height, width)).unflatten(0, extrinsics.shape[:-2])


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _hits(maze: Maze, extrinsics: Tensor, intrinsics: Tensor, size: tuple[int, int], samples: int) -> list[Hits]:
    """Hits of some frames at a time; rays are ordered by (height, sample row, width, sample column)."""
    origins, rotations, focal = _cameras(maze, extrinsics, intrinsics)
    numbers = torch.arange(len(maze), device=origins.device).repeat_interleave(origins.shape[0] // len(maze))
    rays = _image_rays(size, samples, origins.device)
    step = _FRAMES_AT_ONCE.get(origins.device.type, 8)
    march = _compiled_march() if origins.device.type == "cuda" else _march
    found = []
    for first in range(0, origins.shape[0], step):
        part = slice(first, first + step)
        directions = _directions(rays, focal[part], rotations[part])
        found.append(march(maze.walls, numbers[part, None].int(), origins[part], directions))
    return found


def _cameras(maze: Maze, extrinsics: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centres [frames, 3], camera-to-world rotations and intrinsics [frames, 3, 3], on the maze's device."""
    device = maze.walls.device
    groups = extrinsics.shape[0] if extrinsics.ndim == 4 else 1
    if extrinsics.ndim not in (3, 4) or groups != len(maze) or tuple(extrinsics.shape[-2:]) != (4, 4):
        why = f"the shape is {tuple(extrinsics.shape)}, the mazes are {len(maze)}"
        fix = "give [frames, 4, 4], or [mazes, frames, 4, 4] of several mazes"
        raise InputError("There is one group of cameras a maze.", where="extrinsics", why=why, fix=fix)
    poses = invert_rigid(extrinsics.to(device).double()).flatten(0, -3)
    focal = intrinsics.to(device, torch.float32).expand(*extrinsics.shape[:-2], 3, 3).flatten(0, -3)
    return poses[:, :3, 3].float(), poses[:, :3, :3].float(), focal


def _image_rays(size: tuple[int, int], samples: int, device: torch.device) -> Tensor:
    """Image coordinates [rays, 2] (x, y) in [0, 1] of the middles of the parts of all pixels."""
    rows, columns = ((torch.arange(side * samples, device=device) + 0.5) / (side * samples) for side in size)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def _directions(rays: Tensor, intrinsics: Tensor, rotations: Tensor) -> Tensor:
    """Directions [frames, 3, rays] in the world, of length 1 along the camera's axis."""
    focal = torch.stack([intrinsics[:, 0, 0], intrinsics[:, 1, 1]], dim=-1)
    plane = (rays - intrinsics[:, None, :2, 2]) / focal[:, None]
    x, y = plane[..., 0], plane[..., 1]
    columns = rotations[..., None, :]
    return columns[:, :, 0, 0:1] * x[:, None] + columns[:, :, 0, 1:2] * y[:, None] + columns[:, :, 0, 2:3]


def _march(walls: Tensor, numbers: Tensor, origins: Tensor, directions: Tensor) -> Hits:
    """Follow rays [frames, 3, rays] from grid line to grid line until a wall, the floor or the ceiling."""
    ox, oy, oz = (each[:, None] for each in origins.unbind(-1))
    dx, dy, dz = directions.unbind(1)
    column, row = ox.floor().int(), oz.floor().int()
    step_x, step_z = torch.where(dx > 0, 1, -1).int(), torch.where(dz > 0, CELLS, -CELLS).int()
    delta_x, delta_z = 1.0 / dx.abs().clamp_min(1e-9), 1.0 / dz.abs().clamp_min(1e-9)
    next_x = torch.where(dx > 0, column + 1.0 - ox, ox - column) * delta_x
    next_z = torch.where(dz > 0, row + 1.0 - oz, oz - row) * delta_z
    flat = walls.reshape(-1)
    cell = (numbers * CELLS + row) * CELLS + column + torch.zeros_like(step_x)
    going = ~flat[cell]
    along_x = torch.zeros_like(going)
    for _ in range(CROSSINGS):
        along_x = torch.where(going, next_x < next_z, along_x)
        in_x, in_z = going & along_x, going & ~along_x
        next_x, next_z = next_x + in_x * delta_x, next_z + in_z * delta_z
        cell = cell + in_x * step_x + in_z * step_z
        going = going & ~flat[cell]
    wall = torch.where(along_x, next_x - delta_x, next_z - delta_z)
    level = torch.where(dy > 0, 0.5 - oy, 0.5 + oy) / dy.abs().clamp_min(1e-9)
    return _surface(numbers, (ox, oy, oz), (dx, dy, dz), cell, along_x, wall, level)


def _surface(
    numbers: Tensor,
    origin: tuple[Tensor, ...],
    direction: tuple[Tensor, ...],
    cell: Tensor,
    along_x: Tensor,
    wall: Tensor,
    level: Tensor,
) -> Hits:
    """The nearer of the wall and of the floor or ceiling, and where on its face the ray arrives."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    on_wall = wall <= level
    depth = torch.where(on_wall, wall, level)
    x, y, z = ox + dx * depth, oy + dy * depth, oz + dz * depth
    column, row = x.floor().int().clamp(0, CELLS - 1), z.floor().int().clamp(0, CELLS - 1)
    ground = (numbers * CELLS + row) * CELLS + column
    side = torch.where(along_x, (dx < 0).int(), 2 + (dz < 0).int())
    face = torch.where(on_wall, cell * FACES + side, ground * FACES + torch.where(dy > 0, FLOOR, CEILING))
    across = torch.where(on_wall & along_x, z - z.floor(), x - x.floor())
    down = torch.where(on_wall, y + 0.5, z - z.floor())
    texel = (down * TEXELS).int().clamp(0, TEXELS - 1) * TEXELS + (across * TEXELS).int().clamp(0, TEXELS - 1)
    return Hits(depth, face, texel)


@functools.cache
def _compiled_march() -> Compiled[Hits]:
    return Compiled(_march, {0: (0,), 1: (0,), 2: (0,), 3: (0, 2)})


@functools.cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    return pattern_table().flatten().to(device), torch.tensor(_SHADES, device=device)


def _shaded(hits: Hits, maze: Maze, height: int, width: int) -> Tensor:
    """Colours [frames, 3, height, width]: texture, brightness of the face, and haze over the distance."""
    patterns, shades = _tables(hits.face.device)
    pattern = maze.patterns.reshape(-1)[hits.face].int()
    number = patterns[pattern * TEXELS * TEXELS + hits.texel].int()
    packed = maze.colours.reshape(-1)[hits.face * 3 + number]
    clear = 1.0 / (1.0 + (hits.depth / _HAZE_DISTANCE).square())
    light = (clear * shades[hits.face % FACES])[..., None]
    colour = unpacked(packed) * light + _HAZE * (1.0 - clear)[..., None]
    samples = colour.unflatten(1, (height, SAMPLES, width, SAMPLES))
    return samples.mean(dim=(2, 4)).permute(0, 3, 1, 2).contiguous()
