"""A maze with a camera that keys steer; walls stop it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..camera_paths.poses import invert_rigid
from ..world_model import CameraPath
from ..worldplay.rollout import Scene
from ..worldplay.trajectory import step_pose
from .paths import MARGIN, MazePath, protocol
from .render import render_frames
from .world import Maze

if TYPE_CHECKING:
    from .world_model import MazeWorld

STILL = "left-1"
"""A path that fits wherever there is room for a camera."""

_AHEAD = {"w": 1.0, "s": -1.0}
_ASIDE = {"d": 1.0, "a": -1.0}
_TURNS = {"right": 1.0, "left": -1.0}


class MazeVisit:
    """The maze of a seed, from where the model's scene of that seed is seen; see `Visit`."""

    def __init__(self, world: MazeWorld, seed: int, device: torch.device, dtype: torch.dtype) -> None:
        self._world, self._device, self._dtype = world, device, dtype
        self._maze = Maze.from_seed(seed)
        self._codec = world.codec(device)
        self._held: list[frozenset[str]] = []
        self._poses = [protocol(self._maze, STILL, seed).start]

    @property
    def walls(self) -> Tensor:
        """Solid cells."""
        return self._maze.walls[0]

    def path(self, held: Sequence[Collection[str]]) -> MazePath:
        """Moves by 0.08 and turns by 3 degrees a latent frame; what would come too near to a wall only turns."""
        keys = [frozenset(each) for each in held]
        if keys[: len(self._held)] != self._held:
            self._held, self._poses = [], self._poses[:1]
        for each in keys[len(self._held) :]:
            self._poses.append(self._next(self._poses[-1], each))
        self._held = keys
        return MazePath.from_placed(torch.stack(self._poses))

    def _next(self, pose: Tensor, keys: Collection[str]) -> Tensor:
        turn = (sum(_TURNS.get(key, 0.0) for key in keys), 0.0)
        move = (sum(_ASIDE.get(key, 0.0) for key in keys), sum(_AHEAD.get(key, 0.0) for key in keys))
        moved = pose @ step_pose(move, turn)
        place = moved[[0, 2], 3].float()[None]
        return moved if bool(self._maze.is_clear(place, MARGIN).all()) else pose @ step_pose((0.0, 0.0), turn)

    def cameras(self, path: CameraPath) -> Tensor:
        """In the maze's coordinates."""
        assert isinstance(path, MazePath)
        return path.placed

    def scene(self) -> Scene:
        """The rendered view of the first camera, and the prompt."""
        return self._world.scene_at(self._maze, self.path([]), self._device, self._dtype)

    @torch.no_grad()
    def given(self, path: CameraPath) -> Tensor:
        """The first view, encoded, in every frame."""
        maze = self._maze.to(self._device)
        view = render_frames(maze, invert_rigid(self._poses[0])[None], path.intrinsics[0], self._world.pixels)
        latent = self._codec.encode(view).transpose(0, 1)[None]
        return latent.expand(-1, -1, self._world.config.chunk_frames, -1, -1).to(self._dtype).contiguous()

    @torch.no_grad()
    def frames(self, latents: Tensor) -> Tensor:
        """By the model's codec."""
        return self._codec.decode_video(latents.to(self._device, torch.float32))[0].cpu()
