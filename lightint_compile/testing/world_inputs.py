"""The arguments of a drawn world, of given sizes, drawn from a seed: two calls make equal tensors of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from lightint_compile.testing.caches import new_cache
from lightint_compile.testing.parts import TEXT_WIDTH, WIDTH
from lightint_compile.testing.world_features import WorldFeatures
from lightint_compile.testing.worlds import CHUNK, LATENT


@dataclass(frozen=True)
class Sizes:
    """What may change between calls; ``frames`` is the history of a rollout, 0 for none."""

    batch: int = 1
    tokens: int = 6
    text: int = 5
    frames: int = 8
    height: int = 2

    def changed(self, axis: str, size: int) -> Sizes:
        """With one of them another size."""
        return dataclasses.replace(self, **{axis: size})


#: Sizes that a schedule changes to. Up to eight frames of history are context whole, whatever the preset decides.
AXES: dict[str, tuple[int, ...]] = {
    "batch": (1, 2, 3),
    "tokens": (4, 6, 8),
    "text": (2, 3, 5, 7),
    "frames": (0, 4, 8),
    "height": (2, 3),
}

#: The arguments that a size is a size of.
SIZED: dict[str, tuple[str, ...]] = {
    "batch": ("latents", "noise", "history", "extrinsics", "text", "pooled", "cache"),
    "tokens": ("latents",),
    "text": ("text",),
    "frames": ("history", "extrinsics"),
    "height": ("noise", "history"),
}


#: What a noise level arrives as.
SIGMAS: dict[str, Callable[[], Any]] = {
    "float": lambda: 0.5,
    "all": lambda: 0.5,
    "zero-dim": lambda: torch.tensor(0.5),
    "list": lambda: [0.5, 0.25],
    "numpy": lambda: numpy.float32(0.5),
}


def arguments_of(f: WorldFeatures, sizes: Sizes, seed: int) -> dict[str, Any]:
    """Every argument of a call; what the world does not read is left out."""
    draw = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, f.dtype)
    found = _rollout(f, sizes, draw, dtype) if f.kind == "rollout" else _stream(f, sizes, draw, dtype)
    if f.text == "pooled":
        found["pooled"] = torch.randn(sizes.batch, TEXT_WIDTH, generator=draw).to(dtype)
    if f.numbers in SIGMAS:
        found["sigma"] = SIGMAS[f.numbers]()
    if f.numbers in ("int", "all"):
        found["step"] = 3
    if f.numbers in ("bool", "all"):
        found["wide"] = False
    if f.numbers == "name":
        found["name"] = "linear"
    return found


def _stream(f: WorldFeatures, sizes: Sizes, draw: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
    found: dict[str, Any] = {"latents": torch.randn(sizes.batch, sizes.tokens, WIDTH, generator=draw).to(dtype)}
    if f.has_text:
        found["text"] = _text(f, sizes, draw, dtype)
    if f.layout == "shared" and f.has_text and f.text != "ids":
        _share(found, "latents", "text")
    if f.layout == "overlapping" and f.has_text and f.text != "ids":
        _overlap(found, "latents", "text")
    if f.cache != "none":
        found["cache"] = new_cache(f.cache, sizes.batch, draw, dtype, WIDTH)
    return found


def _rollout(f: WorldFeatures, sizes: Sizes, draw: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
    def latents(frames: int) -> Tensor:
        return torch.randn(sizes.batch, LATENT, frames, sizes.height, 2, generator=draw).to(dtype)

    found: dict[str, Any] = {"noise": latents(CHUNK), "history": latents(sizes.frames) if sizes.frames else None}
    found["extrinsics"] = walk(sizes.frames + CHUNK).to(dtype).repeat(sizes.batch, 1, 1, 1)
    if f.has_text:
        found["text"] = _text(f, sizes, draw, dtype)
    return found


def walk(frames: int) -> Tensor:
    """World-to-camera ``[1, frames, 4, 4]`` of a camera that turns and walks on, and never comes back."""
    angle = torch.deg2rad(torch.arange(frames) * 7.0)
    cameras = torch.eye(4).repeat(frames, 1, 1)
    cameras[:, 0, 0] = cameras[:, 2, 2] = angle.cos()
    cameras[:, 0, 2], cameras[:, 2, 0] = -angle.sin(), angle.sin()
    cameras[:, 2, 3] = -0.3 * torch.arange(frames)
    return cameras[None]


def _text(f: WorldFeatures, sizes: Sizes, draw: torch.Generator, dtype: torch.dtype) -> Tensor:
    batch, length = sizes.batch, sizes.text
    if f.text == "ids":
        return torch.randint(0, 16, (batch, length), generator=draw)
    if f.layout == "slice":
        return torch.randn(batch + 1, length, TEXT_WIDTH + 3, generator=draw).to(dtype)[1:, :, 2 : 2 + TEXT_WIDTH]
    if f.layout == "transposed":
        return torch.randn(batch, TEXT_WIDTH, length, generator=draw).to(dtype).transpose(1, 2)
    if f.layout == "negated":  # a lazy one: its memory holds the opposite
        return torch._neg_view(torch.randn(batch, length, TEXT_WIDTH, generator=draw).to(dtype))
    if f.layout == "expanded":
        return torch.randn(1, length, TEXT_WIDTH, generator=draw).to(dtype).expand(batch, -1, -1)
    return torch.randn(batch, length, TEXT_WIDTH, generator=draw).to(dtype)


def _share(arguments: dict[str, Any], *names: str) -> None:
    """Make the named tensors parts of one buffer."""
    buffer = torch.cat([arguments[name].flatten() for name in names])
    start = 0
    for name in names:
        tensor = arguments[name]
        arguments[name] = buffer[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()


def _overlap(arguments: dict[str, Any], *names: str) -> None:
    """Make all of the named tensors begin at the start of one buffer."""
    buffer = max((arguments[name] for name in names), key=Tensor.numel).flatten()
    for name in names:
        arguments[name] = buffer[: arguments[name].numel()].view(arguments[name].shape)
