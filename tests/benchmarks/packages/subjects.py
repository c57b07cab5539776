"""What is packaged: a plain vision transformer, and WorldPlay under several presets."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from lightint_compile.models import registry

CELLS: dict[str, dict[str, Any]] = {
    "vit": {"preset": "exact"},
    "exact": {"preset": "exact"},
    "sparse": {"preset": "sparse"},
    "all": {"preset": "all"},
}
"""Names and options; all but the first are of WorldPlay, ``all`` is a rollout."""

VIT_SIZES = {"8b-480p": (1024, 16, 24, 16), "demo": (256, 4, 4, 8), "tiny": (64, 2, 2, 4)}
"""Width, heads, layers, patches along a side."""


@dataclass(frozen=True)
class Subject:
    """A module in eval mode, a call of it, and the same call with a longer history where the size is symbolic."""

    module: nn.Module
    inputs: dict[str, Any]
    options: dict[str, Any]
    dynamic: dict[str, int] = field(default_factory=dict)
    longer: dict[str, Any] | None = None


class Layer(nn.Module):
    """Attention and a perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, T, C]."""
        parts = self.qkv(self.norm(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        x = x + self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class Vit(nn.Module):
    """A plain vision transformer over patches of 16 pixels."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, width, 16, 16), nn.Linear(width, 1000)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, 3, H, W]; classes [B, 1000]."""
        tokens = self.patch(image).flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens.mean(1))


def world(given: argparse.Namespace) -> Any:
    """The world model of the arguments."""
    return registry.world_model(f"worldplay:{given.size}").at_depth(given.blocks)


def dtype(given: argparse.Namespace) -> torch.dtype:
    """Half precision where a device computes in it."""
    return torch.float32 if given.device == "cpu" else torch.bfloat16


def subject(given: argparse.Namespace, cell: str) -> Subject:
    """What a cell packages."""
    if cell == "vit":
        return _vit(given)
    model = world(given)
    lengths = given.context, given.context + model.spec.chunk
    inputs, longer = (model.example_inputs(frames, given.device, dtype(given)) for frames in lengths)
    options = CELLS[cell] | ({} if given.size == "8b-480p" or cell == "exact" else {"min_tokens": 0})
    return Subject(model.module(given.device, dtype(given)), inputs, options, dict(model.frame_axes), longer)


def _vit(given: argparse.Namespace) -> Subject:
    width, heads, layers, patches = VIT_SIZES[given.size]
    torch.manual_seed(0)
    module = Vit(width, heads, layers).to(given.device, dtype(given)).eval().requires_grad_(False)
    image = torch.randn(8, 3, 16 * patches, 16 * patches).to(given.device, dtype(given))
    return Subject(module, {"image": image}, CELLS["vit"])


def package(given: argparse.Namespace, cell: str) -> Path:
    """Where the package of a cell is."""
    file: Path = given.folder / f"{cell}-{given.size}-{given.blocks}.aoti.pt2"
    return file


def meanings(path: Path) -> Path:
    """Beside a package: what its further inputs mean, as JSON."""
    return path.with_suffix(".json")


def machine(device: str) -> str:
    """Device and versions."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    try:
        import triton

        more = f", Triton {triton.__version__}"
    except ImportError:
        more = ""
    return f"{name}, torch {torch.__version__}{more}"
