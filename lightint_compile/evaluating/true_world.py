"""A world model whose every pose can be rendered: what an evaluation asks of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lightint_compile.models.world_model import CameraPath, WorldModel

FAMILIES = ("protocol", "novel", "recorded")
"""The published protocols, exploration without return, and recorded hand-held walks."""


@dataclass(frozen=True)
class Walk:
    """A camera path through one scene; `number` counts the scenes of an evaluation, `seed` made the scene."""

    family: str
    number: int
    seed: int
    path: CameraPath
    place: Any

    @property
    def name(self) -> str:
        """`family-number`."""
        return f"{self.family}-{self.number}"


@dataclass(frozen=True)
class FromAbove:
    """A walk on the ground: `walls` bool [rows, columns], cells of one scene unit by z and x, and world-to-camera
    matrices `cameras` [frames, 4, 4] in the same coordinates."""

    walls: Tensor
    cameras: Tensor


class TrueWorld(Protocol):
    """Scenes by seed, paths by family, and the truth of every frame; one latent frame is one frame."""

    @property
    def model(self) -> WorldModel:
        """The model that is judged."""
        ...

    @property
    def is_trained(self) -> bool:
        """Whether the model's weights were trained; they are random otherwise."""
        ...

    def tour(self, frames: int) -> Walk:
        """A walk that looks around and comes back the same way, of `frames` latent frames."""
        ...

    def from_above(self, walk: Walk) -> FromAbove:
        """The scene and its cameras from above."""
        ...

    def walk(self, family: str, number: int, frames: int) -> Walk:
        """The path of a family through scene `number`, of `frames` latent frames."""
        ...

    def scene(self, walk: Walk, device: torch.device, dtype: torch.dtype) -> Any:
        """What the model's rollout starts from."""
        ...

    def truth(self, walk: Walk) -> Tensor:
        """Rendered frames [F, 3, H, W] in [0, 1], float32, on the CPU."""
        ...

    def encode(self, frames: Tensor) -> Tensor:
        """Latents [1, C, F, h, w], float32, of frames [F, 3, H, W]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Frames [F, 3, H, W] in [0, 1], float32, on the CPU, of latents [1, C, F, h, w]."""
        ...

    def with_steps(self, steps: int) -> WorldModel:
        """The model with another number of denoising steps, its noise levels spread anew."""
        ...

    def without_memory(self) -> WorldModel:
        """The model when it looks back at the newest chunk alone."""
        ...

    def without_retrieval(self) -> WorldModel:
        """The model when it looks back at the first and the newest frames, at none that the camera sees again."""
        ...
