"""The maze as a world model: the interface of every other one, and with it the truth of every frame."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from lightint_compile.errors import InputError

from ..devices import checked_device
from ..random_weights import fill_random
from ..world_model import ModelFamily, PromptEncoder, VideoDecoder
from ..worldplay.chunk import WorldPlayChunk
from ..worldplay.rollout import Scene
from ..worldplay.trajectory import Trajectory
from ..worldplay.world_model import WorldPlay
from .codec import MazeCodec, MazeVideo
from .config import SIZES, MazeSize
from .paths import MazePath, protocol, square_intrinsics
from .render import render_depth, render_frames
from .visit import STILL, MazeVisit
from .weight_folder import has_weights, load_part
from .world import Maze

WEIGHTS = Path(__file__).parent / "weights"
"""A folder a size; see `weight_folder`."""

UNTRAINED = WEIGHTS / "untrained"
"""Where there are none."""


@dataclass(frozen=True)
class MazeWorld(WorldPlay):
    """A size of the maze's model; see `WorldModel`. Its module is HY-WorldPlay's, its weights are trained.

    `size` has the pixels and the codec. `weights` is the folder of the trained weights; where it holds none, weights
    are random, and a warning says so.
    """

    size: MazeSize = dataclasses.field(default_factory=MazeSize.base)
    weights: Path = WEIGHTS

    @classmethod
    def of(cls, size: MazeSize, weights: Path | None = None) -> Self:
        """The model of a size, with its shipped weights or those of another folder."""
        folder = WEIGHTS / size.name if weights is None else weights
        return cls(size.transformer, example_history=8, text_tokens=1, size=size, weights=folder)

    @property
    def pixels(self) -> int:
        """Pixels along a side of a frame."""
        return self.size.pixels

    @property
    def is_trained(self) -> bool:
        """Whether the folder of weights has those of this size."""
        return has_weights(self.weights)

    def with_weights(self, folder: Path) -> Self:
        """The weights that a training wrote: a folder with `transformer/` and `codec/`; see `Trainable`."""
        made = dataclasses.replace(self, weights=folder)
        if not made.is_trained:
            why, fix = "it has no transformer/ and codec/", "name the folder weights/ of a training's --out"
            raise InputError("there are no trained weights", where=str(folder), why=why, fix=fix)
        return made

    def at_depth(self, depth: int) -> Self:
        """With another number of blocks, for which there are no trained weights."""
        other = super().at_depth(depth)
        return other if depth == self.config.depth else dataclasses.replace(other, weights=UNTRAINED)

    def module(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> nn.Module:
        """A `WorldPlayChunk` with the trained weights; with random ones from the seed where there are none.

        Raises:
            CheckpointError: weights that are not of this size, or of another depth.
        """
        if torch.device(device).type == "meta" or not self.is_trained:
            self._warn(device)
            return super().module(device, dtype, seed)
        chunk = WorldPlayChunk(self.config)
        load_part(chunk.transformer, self.weights, "transformer")
        return chunk.to(checked_device(device), dtype).eval().requires_grad_(False)

    def codec(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> MazeCodec:
        """The codec with its trained weights; with random ones from the seed where there are none."""
        codec = MazeCodec(self.size.codec)
        if self.is_trained:
            load_part(codec, self.weights, "codec")
        else:
            self._warn(device)
            fill_random(codec, seed)
        return codec.to(checked_device(device), dtype).eval().requires_grad_(False)

    def prompt_encoder(
        self, scene: Any, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> PromptEncoder:
        """Raise InputError: every maze has the same prompt, which is a number of the weights."""
        why, fix = "every maze has the same prompt", "leave --text out"
        raise InputError("nothing encodes a text for the maze's model", where="--text", why=why, fix=fix)

    @property
    def decoders(self) -> Sequence[str]:
        """There is one."""
        return ("codec",)

    def video_decoder(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0, name: str = ""
    ) -> VideoDecoder:
        """The codec, which decodes each latent frame alone."""
        kind = "trained" if self.is_trained else "random"
        return VideoDecoder(MazeVideo(self.codec(device, dtype, seed)), f"MazeCodec, {kind} weights", by_chunk=True)

    def camera_path(self, text: str) -> Trajectory:
        """The trajectory of a pose string, through no maze; `paths.protocol` places one."""
        return Trajectory.from_pose_string(text, square_intrinsics())

    def recorded_path(self, poses: Tensor, times: Tensor, frames: int) -> Trajectory:
        """Resampled and scaled, through no maze; `paths.recorded` places one."""
        path = super().recorded_path(poses, times, frames)
        return Trajectory(path.extrinsics, square_intrinsics().expand(frames, 3, 3), path.actions)

    def scene(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> Scene:
        """The view from a place in the maze of the seed; random on the meta device."""
        if torch.device(device).type == "meta":
            return super().scene(device, dtype, seed)
        maze = Maze.from_seed(seed)
        return self.scene_at(maze, protocol(maze, STILL, seed), device, dtype)

    def scene_at(
        self, maze: Maze, path: MazePath, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Scene:
        """What a rollout along a path starts from: the rendered view of its first camera, and the prompt."""
        frame = render_frames(maze.to(device), path.placed[:1], path.intrinsics[0], self.pixels)
        image = self.codec(device, torch.float32).encode(frame).to(dtype)
        return Scene(image, **prompt(self.size, 1, device, dtype))

    def visit(self, seed: int, device: torch.device, dtype: torch.dtype) -> MazeVisit:
        """The maze of a seed, to be walked through; see `Visitable`."""
        return MazeVisit(self, seed, device, dtype)

    def truth(self, maze: Maze, path: MazePath) -> tuple[Tensor, Tensor]:
        """Rendered frames [F, 3, H, W] and depth [F, H, W] of a path, on the maze's device."""
        frames = render_frames(maze, path.placed, path.intrinsics, self.pixels)
        return frames, render_depth(maze, path.placed, path.intrinsics, self.pixels)

    def _warn(self, device: torch.device | str) -> None:
        if torch.device(device).type != "meta":
            what = f"maze:{self.size.name} has no trained weights in {self.weights}: they are random"
            warnings.warn(what, stacklevel=3)

    def __str__(self) -> str:
        kind = "trained" if self.is_trained else "random"
        return f"maze:{self.size.name}, {kind} weights, {super().__str__()}"


def prompt(
    size: MazeSize, batch: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """The text inputs, the same for every scene: one language token, no glyphs, one vision token, all of ones."""
    config = size.transformer
    return {
        "text": torch.ones(batch, 1, config.text_dim, device=device, dtype=dtype),
        "glyphs": torch.ones(batch, 0, config.glyph_dim, device=device, dtype=dtype),
        "vision": torch.ones(batch, config.vision_tokens, config.vision_dim, device=device, dtype=dtype),
    }


FAMILY = ModelFamily({name: lambda size=size: MazeWorld.of(size()) for name, size in SIZES.items()})  # type: ignore[misc]
