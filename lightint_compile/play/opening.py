"""The model that is played: its module, as it is and accelerated, and what its first calls compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightint_compile.errors import DeviceError
from lightint_compile.models.devices import checked_device
from lightint_compile.models.registry import world_model
from lightint_compile.models.world_model import WorldModel, with_weights
from lightint_compile.options import LightintOptions
from lightint_compile.play.walking import Walking, place_of


@dataclass(frozen=True)
class Played:
    """A model on a device, and how it is called.

    Attributes:
        name: `family:size`.
        preset: what the accelerated call approximates or not.
        fast: the compiled module.
    """

    name: str
    model: WorldModel
    module: nn.Module
    fast: Callable[..., Tensor]
    preset: str
    device: torch.device
    dtype: torch.dtype
    seed: int

    @classmethod
    def open(
        cls,
        name: str,
        *,
        preset: str,
        device: str | None = None,
        seed: int = 0,
        weights: Path | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Played:
        """The model of a name, in float32 on a CPU and in bfloat16 on a GPU.

        `options` are further ones of the backend, `weights` is a folder of trained ones.

        Raises:
            InputError, OptionError: there is no such model or preset, or no weights in the folder.
            DeviceError: the model is too large for a CPU, or there is no such device.
        """
        given = {"preset": preset, **(options or {})}
        LightintOptions.from_mapping(given)
        model = with_weights(world_model(name), weights)
        place = checked_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if model.needs_gpu and place.type == "cpu":
            raise DeviceError(f"{name} is too large for a CPU", where="--device", fix="name a smaller size, or a GPU")
        dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
        module = model.module(place, dtype, seed)
        fast = torch.compile(module, backend="lightint", options=given)
        return cls(name, model, module, fast, preset, place, dtype, seed)

    def walking(self, seed: int) -> Walking:
        """A new walk through the place of a seed."""
        place = place_of(self.model, seed, self.device, self.dtype)
        return Walking(self.model, self.module, self.fast, seed, place)

    def warm_up(self) -> Iterator[int]:
        """Walk until memory is full and back again, so that everything is compiled; tells how many chunks are left."""
        spec, walk = self.model.spec, self.walking(self.seed)
        walk.begin()
        there = spec.chunks(spec.memory) + 1
        for number in range(2 * there):
            walk.go(["left" if number < there else "right"], accelerated=True)
            yield 2 * there - number - 1
