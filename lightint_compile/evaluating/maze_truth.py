"""The mazes as a world with truth: one maze a number, the same one for every family and variant."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lightint_compile.errors import InputError
from lightint_compile.models.maze import Maze, MazeCodec, MazePath, MazeWorld, novel, protocol, recorded, there_and_back
from lightint_compile.models.maze.render import render_frames

from .recordings import recording
from .true_world import FromAbove, Walk

LEG = 32
"""Latent frames of a leg of the published protocols; longer paths repeat them."""

HELD_OUT = 2**16
"""Mazes that judge a model have seeds below this one; training draws far above."""

TOUR_AHEAD = 6
"""Latent frames of a tour before it turns."""

_RETRIES = 16


@dataclass(frozen=True)
class MazeTruth:
    """Mazes number 0, 1, ... of a `seed`; see `TrueWorld`."""

    model: MazeWorld
    device: torch.device
    seed: int = 0

    @cached_property
    def _codec(self) -> MazeCodec:
        return self.model.codec(self.device)

    @property
    def is_trained(self) -> bool:
        """Whether there are weights of this size."""
        return self.model.is_trained

    def walk(self, family: str, number: int, frames: int) -> Walk:
        """Where a path fits nowhere into a maze, the next maze of the same number is taken."""
        return self._fitting(family, number, lambda maze: self._path(maze, family, number, frames))

    def tour(self, frames: int) -> Walk:
        """Ahead, then ahead in a curve to the left, and back: half of the training's walks come back like that."""
        curve = max(frames // 2 - TOUR_AHEAD, 1)
        text = f"w-{TOUR_AHEAD},w+left-{curve}"
        return self._fitting("tour", 0, lambda maze: there_and_back(maze, text, frames, self.seed))

    def _fitting(self, family: str, number: int, path_in: Callable[[Maze], MazePath]) -> Walk:
        stride = HELD_OUT // _RETRIES
        attempt = 0
        while True:
            seed = (self.seed * 256 + number) % stride + attempt * stride
            maze = Maze.from_seed(seed)
            try:
                return Walk(family, number, seed, path_in(maze), maze)
            except InputError:
                attempt += 1
                if attempt == _RETRIES:
                    raise

    def from_above(self, walk: Walk) -> FromAbove:
        """The maze's walls."""
        return FromAbove(walk.place.walls[0], _placed(walk).placed)

    def _path(self, maze: Maze, family: str, number: int, frames: int) -> MazePath:
        if family == "novel":
            return novel(maze, frames, number)
        if family == "recorded":
            return recorded(maze, *recording(number, frames), frames, number)
        return protocol(maze, protocol_text(number, frames), number)

    def scene(self, walk: Walk, device: torch.device, dtype: torch.dtype) -> Any:
        """The view of the first camera, and the prompt."""
        return self.model.scene_at(walk.place, _placed(walk), device, dtype)

    def truth(self, walk: Walk) -> Tensor:
        """The frames of every camera; equal cameras are rendered once."""
        path = _placed(walk)
        cameras = torch.cat([path.placed.flatten(1), path.intrinsics.double().flatten(1)], dim=1)
        distinct, number = torch.unique(cameras, dim=0, return_inverse=True)
        placed, intrinsics = distinct.split([16, 9], dim=1)
        maze = walk.place.to(self.device)
        frames = render_frames(maze, placed.unflatten(1, (4, 4)), intrinsics.unflatten(1, (3, 3)), self.model.pixels)
        return frames.cpu()[number]

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """By the model's codec."""
        return self._codec.encode(frames.to(self.device, torch.float32)).transpose(0, 1)[None]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """By the model's codec."""
        return self._codec.decode_video(latents.to(self.device, torch.float32))[0].cpu()

    def with_steps(self, steps: int) -> MazeWorld:
        """The schedule of that many steps with the model's shift."""
        return self._configured(steps=steps)

    def without_memory(self) -> MazeWorld:
        """The context is the newest chunk."""
        chunk = self.model.config.chunk_frames
        return self._configured(memory=chunk, recent=chunk, sink=0)

    def without_retrieval(self) -> MazeWorld:
        """The frames of retrieved clips are left out."""
        config = self.model.config
        return self._configured(memory=config.sink + config.recent)

    def _configured(self, **changes: Any) -> MazeWorld:
        return dataclasses.replace(self.model, config=dataclasses.replace(self.model.config, **changes))


def _placed(walk: Walk) -> MazePath:
    assert isinstance(walk.path, MazePath)
    return walk.path


def protocol_text(number: int, frames: int) -> str:
    """The pose string of a published protocol: even numbers turn and turn back, odd ones walk there and back."""
    away, back = (("left", "right"), ("w", "s"))[number % 2]
    leg = min(LEG, frames // 2)
    lengths = [leg - 1] + [leg] * (frames // leg - 1) + [frames % leg]
    return ",".join(f"{(away, back)[index % 2]}-{length}" for index, length in enumerate(lengths) if length)
