"""A place without walls, for a model that has none of its own: keys are a pose string, latents are shown as colours."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from lightint_compile.models.world_model import CameraPath, WorldModel

_WEIGHTS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9], [0.3, 0.3, 0.3]])
"""What each of the first latent channels adds to red, green and blue."""


class OpenPlace:
    """The scene of a seed; see `Visit`. The model has no decoder here, so a picture is the latents' first channels."""

    walls = None

    def __init__(self, model: WorldModel, seed: int, device: torch.device, dtype: torch.dtype) -> None:
        self._model = model
        self._scene = model.scene(device, dtype, seed)

    def path(self, held: Sequence[Collection[str]]) -> CameraPath:
        """The pose string of the keys; some are held in every frame."""
        segments: list[tuple[str, int]] = []
        for keys in held:
            name = "+".join(sorted(keys))
            count = segments.pop()[1] if segments and segments[-1][0] == name else 0
            segments.append((name, count + 1))
        return self._model.camera_path(",".join(f"{name}-{count}" for name, count in segments))

    def cameras(self, path: CameraPath) -> Tensor:
        """As they are: the first one is the origin."""
        return path.extrinsics

    def scene(self) -> Any:
        """Random, as `WorldModel.scene` gives it."""
        return self._scene

    def given(self, path: CameraPath) -> None:
        """Nothing: the first chunk is made like the others."""
        return None

    def frames(self, latents: Tensor) -> Tensor:
        """False colours around grey, a pixel a latent one."""
        shown = latents[0, : len(_WEIGHTS)].float().cpu()
        colours = torch.einsum("cfhw,cr->frhw", shown, _WEIGHTS[: len(shown)])
        return (0.5 + 0.2 * colours).clamp(0.0, 1.0)
