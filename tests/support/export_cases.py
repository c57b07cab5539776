"""Models that are exported, and presets that compute, skip and decide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from lightint_compile.models import registry

PRESETS: dict[str, dict[str, Any]] = {
    "exact": {"preset": "exact"},
    "sparse": {"preset": "sparse", "min_tokens": 0},
    "all": {"preset": "all", "min_tokens": 0},
}
SLOW = (pytest.mark.slow, pytest.mark.timeout(3600))  # a package of WorldPlay compiles for minutes


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        x = x + self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class Vit(nn.Module):
    """A plain vision transformer that classifies, over patches and any number of further tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch = nn.Conv2d(3, 32, 4, 4)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.head = nn.Linear(32, 10)

    def forward(self, image: Tensor, prompt: Tensor) -> Tensor:
        tokens = torch.cat([prompt, self.patch(image).flatten(2).transpose(1, 2)], 1)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens.mean(1))


@dataclass(frozen=True)
class Case:
    """A model, a call of it, and the same call with a longer context where export finds none by itself."""

    module: nn.Module
    inputs: dict[str, Any]
    dynamic: dict[str, int]
    longer: dict[str, Any] | None = None


def vit() -> Case:
    inputs = {"image": torch.randn(1, 3, 16, 16), "prompt": torch.randn(1, 5, 32)}
    return Case(Vit().eval().requires_grad_(False), inputs, {"prompt": 1})


def wan22_ti2v() -> Case:
    """Noise level by token, and frames large enough that skipping tiles of them pays."""
    module, inputs = zoo.build("wan22_ti2v")
    latents, levels = torch.randn(1, 4, 8, 24, 24), torch.full((1, 8 * 12 * 12), 500.0)
    return Case(module, inputs | {"hidden_states": latents, "timestep": levels}, {"encoder_hidden_states": 1})


def world(name: str) -> Case:
    model = registry.world_model(name)
    first, more = model.example_history, model.spec.chunk
    inputs = [model.example_inputs(history) for history in (first, first + more)]
    return Case(model.module(), inputs[0], dict(model.frame_axes), inputs[1])


MODELS: dict[str, Callable[[], Case]] = {
    "vit": vit,
    "wan22-ti2v": wan22_ti2v,
    "worldplay": lambda: world("worldplay:tiny"),
    "matrix-game": lambda: world("matrix-game:tiny"),
}
