"""A small world model, written once, and the calls in which its chunks are computed, in several forms.

As one module, a call makes keys and values of the context and takes all denoising steps. Call by call, one call makes
the keys and values, and every step is a call that is given them. In place, the first call writes them into buffers of
the caller's, and every step writes its own behind them and attends to the window that they fill; the buffers may also
be the module's own, and the steps one call.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from islands import Island
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, DIM, PLANE, CHUNK, MEMORY = 32, 2, 16, 16, 4, 20
"""A frame has 4x4 tokens, of which a latent [B, 4, F, 8, 8] in patches of 1x2x2 is made; a chunk has four frames."""

SIGMAS = (1.0, 0.9, 0.7, 0.4, 0.0)
PLACES = 16 * PLANE
"""Tokens that a buffer has room for."""

Pair: TypeAlias = tuple[Tensor, Tensor]
Join: TypeAlias = Callable[[Tensor, Tensor], Pair]
"""A block's own keys and values [B, tokens, heads, dim] to those that it attends to."""


def alone(key: Tensor, value: Tensor) -> Pair:
    """Nothing is attended to but a block's own tokens."""
    return key, value


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention in plain operations; tokens first."""
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    weights = torch.softmax(query @ key.transpose(-2, -1) * DIM**-0.5, dim=-1)
    return (weights @ value).transpose(1, 2).flatten(2)


class Block(nn.Module):
    """Self-attention under a modulation for each token, attention to text, and a feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.modulation, self.qkv = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.out, self.query, self.text = Island(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(8, 2 * WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, told: Tensor, text: Tensor | None, join: Join) -> tuple[Tensor, Pair]:
        shift, scale = self.modulation(F.silu(told)).chunk(2, -1)
        query, key, value = self.qkv(self.norm(x) * (1 + scale) + shift).unflatten(-1, (3, HEADS, -1)).unbind(2)
        x = x + self.out(attended(query, *join(key, value))).to(x.dtype)
        if text is not None:
            given = self.text(text).unflatten(-1, (2, HEADS, -1)).unbind(2)
            x = x + attended(self.query(self.norm(x)).unflatten(-1, (HEADS, -1)), *given)
        return x + self.narrow(F.gelu(self.wide(self.norm(x)))), (key, value)


class World(nn.Module):
    """A time for each token, a camera for each frame, and text; the projections behind attention stay in bfloat16."""

    def __init__(self, dtype: torch.dtype, layers: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv3d(4, WIDTH, (1, 2, 2), (1, 2, 2))
        self.pose, self.placed = nn.Linear(16, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.time = nn.Sequential(nn.Linear(8, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(layers))
        self.head = nn.Linear(WIDTH, 16)
        self.to(dtype).eval().requires_grad_(False)
        for block in self.stack:
            block.out.to(torch.bfloat16)
            for name in "kv":
                block.register_buffer(name, torch.zeros(1, PLACES, HEADS, DIM, dtype=dtype))

    @property
    def stack(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    @property
    def own(self) -> list[Pair]:
        """A buffer for keys and one for values in every block."""
        return [(block.get_buffer("k"), block.get_buffer("v")) for block in self.stack]

    def in_float64(self) -> World:
        """The same weights, of which everything is computed in float64."""
        exact = copy.deepcopy(self).double()
        for block in exact.stack:
            block.out.wide = torch.float64
        return exact

    def kept(self, history: Tensor, cameras: Tensor) -> list[Pair]:
        """Keys and values of the context in every block."""
        tokens = self.tokens(history)
        told, kept = self.told(torch.zeros_like(tokens[..., 0]), cameras), []
        for block in self.stack:
            tokens, own = block(tokens, told, None, alone)
            kept.append(own)
        return kept

    def velocity(self, latents: Tensor, times: Tensor, cameras: Tensor, text: Tensor, joins: Sequence[Join]) -> Tensor:
        """The prediction of a step, at a time for each token."""
        x, told = self.tokens(latents), self.told(times, cameras)
        for block, join in zip(self.stack, joins, strict=True):
            x, _ = block(x, told, text, join)
        batch, _, frames, height, width = latents.shape
        patches = self.head(x).reshape(batch, frames, height // 2, width // 2, 4, 2, 2)
        return patches.permute(0, 4, 1, 2, 5, 3, 6).reshape(latents.shape)

    def tokens(self, latents: Tensor) -> Tensor:
        return self.embed(latents).flatten(2).transpose(1, 2)

    def told(self, times: Tensor, cameras: Tensor) -> Tensor:
        angles = times[..., None] * torch.arange(1, 5, dtype=times.dtype, device=times.device)
        pose = self.pose(cameras.flatten(2)).repeat_interleave(PLANE, 1)
        return self.time(torch.cat([angles.cos(), angles.sin()], -1)) + self.placed(F.silu(pose))


def moved(latents: Tensor, velocity: Tensor, step: int) -> Tensor:
    return latents + velocity * (SIGMAS[step + 1] - SIGMAS[step])


class Part(nn.Module):
    """A call of a form, which computes with the whole world's weights."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def selected(self, history: Tensor, cameras: Tensor) -> list[Pair]:
        """Keys and values of all frames while there is room, else of the first four and the newest."""
        frames = history.shape[2]
        count = min(frames, MEMORY) if isinstance(frames, int) else torch.sym_min(frames, MEMORY)
        slot = torch.arange(count, device=cameras.device)
        near = (cameras[0, -1, :3, 3] - cameras[0, 0, :3, 3]).abs().sum() < 1e6
        chosen = torch.where((slot < 4) & near, slot, slot + (frames - count))
        return self.world.kept(history.index_select(2, chosen), cameras.index_select(1, chosen))


class Whole(Part):
    """The context is selected from the history, prefilled, and all steps are taken."""

    def forward(self, noise: Tensor, history: Tensor, cameras: Tensor, noisy: Tensor, text: Tensor) -> Tensor:
        kept = self.selected(history, cameras)
        joins, views = [joined(pair) for pair in kept], cameras[:, -CHUNK:]
        for step, sigma in enumerate(SIGMAS[:-1]):
            noise = moved(noise, self.world.velocity(noise, noisy * sigma, views, text, joins), step)
        return noise


class Keys(Part):
    """Hands out keys and values of the context."""

    def forward(self, history: Tensor, cameras: Tensor) -> list[Pair]:
        return self.selected(history, cameras)


class Step(Part):
    def forward(self, latents: Tensor, times: Tensor, cameras: Tensor, text: Tensor, kept: list[Pair]) -> Tensor:
        return self.world.velocity(latents, times, cameras, text, [joined(pair) for pair in kept])


class Fill(Part):
    """Writes keys and values of the context into the front of the buffers."""

    def forward(self, history: Tensor, cameras: Tensor, caches: list[Pair]) -> None:
        for pair, own in zip(caches, self.selected(history, cameras), strict=True):
            for buffer, new in zip(pair, own, strict=True):
                buffer[:, : new.shape[1]] = new


class Slide(Part):
    """A step that writes its own keys and values behind ``start``."""

    def forward(
        self, latents: Tensor, times: Tensor, cameras: Tensor, text: Tensor, caches: list[Pair], start: int
    ) -> Tensor:
        joins = [written(pair, start) for pair in caches]
        return self.world.velocity(latents, times, cameras, text, joins)


def joined(kept: Pair) -> Join:
    return lambda key, value: (torch.cat([kept[0], key], 1), torch.cat([kept[1], value], 1))


def written(pair: Pair, start: int) -> Join:
    def join(key: Tensor, value: Tensor) -> Pair:
        end = start + key.shape[1]
        for buffer, own in zip(pair, (key, value), strict=True):
            buffer[:, start:end] = own
        return pair[0][:, :end], pair[1][:, :end]

    return join


class Rolled(Part):
    """All steps in one call, each of which writes its own keys and values behind ``start``."""

    def forward(
        self, noise: Tensor, noisy: Tensor, cameras: Tensor, text: Tensor, caches: list[Pair], start: int
    ) -> Tensor:
        joins = [written(pair, start) for pair in caches]
        for step, sigma in enumerate(SIGMAS[:-1]):
            noise = moved(noise, self.world.velocity(noise, noisy * sigma, cameras, text, joins), step)
        return noise


class OwnFill(Fill):
    """The buffers are the world's own."""

    def forward(self, history: Tensor, cameras: Tensor) -> None:  # type: ignore[override]
        super().forward(history, cameras, self.world.own)


class OwnSlide(Slide):
    """The buffers are the world's own."""

    def forward(  # type: ignore[override]
        self, latents: Tensor, times: Tensor, cameras: Tensor, text: Tensor, start: int
    ) -> Tensor:
        return super().forward(latents, times, cameras, text, self.world.own, start)
