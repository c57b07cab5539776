"""Small video transformers whose tokens are dealt out to ranks, and twins that must not be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toy_world import Block as ToyBlock
from toy_world import ToyWorld

TWINS = ("conv", "mean", "mask", "random")
"""What a twin has that keeps its tokens together; ``copies`` attends twice, to one as to the other."""


class Block(nn.Module):
    """Attention with turned positions, attention to text, an MLP; modulated by frame."""

    def __init__(self, width: int, heads: int, twin: str, joint: bool) -> None:
        super().__init__()
        self.heads, self.twin, self.joint = heads, twin, joint
        self.mod = nn.Linear(width, 3 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.cross_q, self.cross_kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.mix = nn.Conv1d(width, width, 3, padding=1, groups=width)

    def split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(
        self, tokens: Tensor, time: Tensor, text: Tensor, table: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        shift, scale, gate = self.mod(time).chunk(3, -1)
        inner = self.norm(tokens) * (1 + scale) + shift
        if self.twin == "conv":
            inner = inner + self.mix(inner.transpose(1, 2)).transpose(1, 2)
        if self.twin == "mean":
            inner = inner - inner.mean(1, keepdim=True)
        if self.twin == "random":
            inner = inner + 1e-3 * torch.randn_like(inner)
        query, key, value = map(self.split, self.qkv(inner).chunk(3, -1))
        query, key = turned(query, table), turned(key, table)
        own = (key, value)
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        if self.joint:
            more = map(self.split, self.cross_kv(text).chunk(2, -1))
            key, value = (torch.cat([a, b], 2) for a, b in zip(more, (key, value), strict=True))
        mask = (inner.mean(-1) > -9)[:, None, None, :] if self.twin == "mask" else None
        if self.twin == "copies":
            query, key, value = (torch.cat([each, 0.5 * each]) for each in (query, key, value))
        seen = attend(query, key, value, mask)
        tokens = tokens + gate * self.out(sum(seen.chunk(2)) if self.twin == "copies" else seen)
        if not self.joint:
            key, value = map(self.split, self.cross_kv(text).chunk(2, -1))
            tokens = tokens + attend(self.split(self.cross_q(tokens)), key, value, None)
        return tokens + self.fc2(F.gelu(self.fc1(self.norm(tokens)))), own


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2)


def turned(heads: Tensor, table: Tensor) -> Tensor:
    first, second = heads.chunk(2, -1)
    return heads * table.cos() + torch.cat([-second, first], -1) * table.sin()


class World(nn.Module):
    """A step over latents [B, 4, T, h, w] with text [B, n, width]; keys and values of a past may be given.

    ``steps`` unrolls a denoising loop; ``keeps`` also returns keys and values.
    """

    def __init__(
        self,
        *,
        width: int = 32,
        heads: int = 4,
        depth: int = 1,
        twin: str = "",
        joint: bool = False,
        steps: int = 1,
        keeps: bool = False,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.width, self.heads, self.steps, self.keeps = width, heads, steps, keeps
        self.key_heads = heads
        self.embed = nn.Conv3d(4, width, (1, 2, 2), (1, 2, 2))
        self.time = nn.Linear(1, width)
        self.blocks = nn.ModuleList([Block(width, heads, twin, joint) for _ in range(depth)])
        self.head = nn.Linear(width, 16)

    def forward(self, latents: Tensor, text: Tensor, *flat: Tensor) -> Any:
        kept: list[tuple[Tensor, Tensor]] = []
        past = list(zip(flat[::2], flat[1::2], strict=True)) or None
        for step in range(self.steps):
            velocity, kept = self.velocity(latents, text, 1 - 0.2 * step, past)
            latents = latents - 0.2 * velocity
        return (latents, kept) if self.keeps else latents

    def velocity(
        self, latents: Tensor, text: Tensor, time: float, past: list[tuple[Tensor, Tensor]] | None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        embedded = self.embed(latents)
        batch, _, frames, height, width = embedded.shape
        tokens, kept = embedded.flatten(2).transpose(1, 2), []
        times = time + 0.1 * torch.arange(frames, dtype=latents.dtype, device=latents.device)
        told = self.time(times[:, None]).repeat_interleave(height * width, 0)[None]
        place = torch.arange(frames * height * width, dtype=latents.dtype, device=latents.device)
        table = place[:, None] * torch.linspace(0.1, 1, self.width // self.heads).to(place)[None]
        for number, block in enumerate(self.blocks):
            tokens, own = block(tokens, told, text, table, None if past is None else past[number])
            kept.append(own)
        patches = self.head(tokens).reshape(batch, frames, height, width, 4, 2, 2)
        return patches.permute(0, 4, 1, 2, 5, 3, 6).reshape(latents.shape), kept


class Cached(World):
    """Writes each block's keys and values into a buffer of the caller's, behind those of earlier calls."""

    def forward(self, latents: Tensor, text: Tensor, caches: list[tuple[Tensor, Tensor]], start: int) -> Tensor:
        embedded = self.embed(latents)
        batch, _, frames, height, width = embedded.shape
        tokens = embedded.flatten(2).transpose(1, 2)
        count = frames * height * width
        told = self.time(torch.ones(1, 1, dtype=latents.dtype))[None].expand(1, count, -1)
        table = torch.zeros(count, self.width // self.heads, dtype=latents.dtype)
        for block, (keys, values) in zip(self.blocks, caches, strict=True):
            tokens = self.attended(block, tokens, told, text, table, (keys, values), start)
        patches = self.head(tokens).reshape(batch, frames, height, width, 4, 2, 2)
        return patches.permute(0, 4, 1, 2, 5, 3, 6).reshape(latents.shape)

    def attended(self, block, tokens, told, text, table, cache, start):
        keys, values = cache
        inner = block.norm(tokens)
        query, key, value = map(block.split, block.qkv(inner).chunk(3, -1))
        end = start + tokens.shape[1]
        keys[:, :, start:end] = turned(key, table)
        values[:, :, start:end] = value
        seen = attend(query, keys[:, :, :end], values[:, :, :end], None)
        return tokens + block.out(seen)


class HeadedBlock(ToyBlock):
    """The toy world's block with heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width)
        self.heads = heads

    def forward(self, tokens: Tensor, time: Tensor, context: tuple[Tensor, Tensor] | None) -> Any:
        parts = self.qkv(self.norm(tokens) + time).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        kept = (key, value)
        if context is not None:
            key, value = torch.cat([context[0], key], 2), torch.cat([context[1], value], 2)
        tokens = tokens + self.out(attend(query, key, value, None))
        return tokens + self.mlp(self.norm(tokens)), kept


class Headed(ToyWorld):
    """The toy world with heads: it selects context, prefills it and denoises it, as cameras say."""

    def __init__(self, heads: int = 4, width: int = 16) -> None:
        torch.manual_seed(0)
        super().__init__(width)
        self.blocks = nn.ModuleList([HeadedBlock(width, heads) for _ in range(2)])


def inputs(
    world: World,
    *,
    frames: int = 4,
    height: int = 4,
    width: int = 8,
    past: int = 0,
    text: int = 5,
    batch: int = 1,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[Any, ...]:
    """Arguments of a call: latents, text, and the keys and values of ``past`` frames where there are any."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

    latents = normal(batch, 4, frames, 2 * height, 2 * width)
    words = normal(batch, text, world.width)
    if not past:
        return latents, words
    shape = (batch, world.key_heads, past * height * width, world.width // world.heads)
    return latents, words, *(normal(*shape) for _ in world.blocks for _ in "kv")
