"""Small diffusion transformers of the kind that autoregressive video models are, made from features."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightint_compile.testing.features import Features
from lightint_compile.testing.spelled import attend

_HEAD_DIM = 4
_FRAME_TOKENS = 3
_TEXT_TOKENS = 2
_CONTEXT_TOKENS = 4


@dataclass(frozen=True)
class Tables:
    """What all layers share.

    Attributes:
        cos, sin: ``[tokens, head_dim / 2]``; empty when there is no rotary embedding.
        mask: ``[tokens, keys]``.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor


Join: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Gives the keys and values ``[batch, heads, tokens, dim]`` that a block attends to, from the chunk's own."""


class Norm(nn.Module):
    """Layer or RMS norm, whole or spelled out, with or without an affine part."""

    def __init__(self, width: int, kind: str, affine: bool) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.rand(width) + 0.5) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` to the same."""
        if self.kind == "layer":
            return F.layer_norm(x, x.shape[-1:], self.weight)
        if self.kind == "rms":
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
            return x if self.weight is None else x * self.weight
        return x


class Block(nn.Module):
    """Modulated attention over the chunk, its text and its context, then a small MLP."""

    def __init__(self, f: Features) -> None:
        super().__init__()
        self.f = f
        width, key_width = f.heads * _HEAD_DIM, (f.key_heads or f.heads) * _HEAD_DIM
        self.norm = Norm(width, f.norm, f.affine)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, key_width)
        self.to_v = nn.Linear(width, key_width)
        self.to_out = nn.Linear(width, width)
        self.query_norm = Norm(_HEAD_DIM, "rms", f.affine) if f.query_norm else None
        self.modulation = nn.Linear(width, 3 * width) if f.modulation == "frame" else None
        self.mlp = nn.Linear(width, width)

    def forward(self, x: Tensor, condition: Tensor, join: Join, tables: Tables) -> tuple[Tensor, Tensor | None]:
        """``x`` is ``[batch, tokens, width]``, ``condition`` ``[batch, frames, width]``; weights if they escape."""
        f, h = self.f, self.norm(x)
        gate: Tensor | None = None
        if self.modulation is not None:
            rows = self.modulation(F.silu(condition)).repeat_interleave(_FRAME_TOKENS, dim=1)
            shift, scale, gate = rows.chunk(3, dim=-1)
            h = h * (1 + scale) + shift
        query, key, value = self._heads(h, tables)
        key, value = join(key, value)
        result, weights = attend(query, key, value, None if f.mask == "none" else tables.mask, f)
        result = self.to_out(result.transpose(1, 2).reshape(x.shape))
        x = x + (result if gate is None else result * gate)
        return x + F.gelu(self.mlp(_shuffled(x) if f.reshapes else x)), weights

    def _heads(self, h: Tensor, tables: Tables) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = (_split(project(h)) for project in (self.to_q, self.to_k, self.to_v))
        if self.query_norm is not None:
            query, key = self.query_norm(query), self.query_norm(key)
        query, key = (_rotated(x, tables, self.f.rope) for x in (query, key))
        return query, key, value

    def projected(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of tokens that have no place in the chunk: those of text and context."""
        key, value = (project(tokens).unflatten(-1, (-1, _HEAD_DIM)) for project in (self.to_k, self.to_v))
        return key.transpose(1, 2), value.transpose(1, 2)

    def joined(self, text: Tensor, context: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The chunk's keys and values, and those of its text and context."""
        f = self.f
        if f.context:
            key = torch.cat([_split(self.to_k(context)), key], dim=2)
            value = torch.cat([_split(self.to_v(context)), value], dim=2)
        if f.prefix != "none":
            order = (lambda a, b: [a, b]) if f.prefix == "first" else (lambda a, b: [b, a])
            key = torch.cat(order(_split(self.to_k(text)), key), dim=2)
            value = torch.cat(order(_split(self.to_v(text)), value), dim=2)
        return key, value


class Model(nn.Module):
    """Denoising steps, unrolled, over a stack of blocks."""

    def __init__(self, f: Features) -> None:
        super().__init__()
        self.f = f
        width = f.heads * _HEAD_DIM
        self.blocks = nn.ModuleList(Block(f) for _ in range(f.layers))
        self.velocity = nn.Linear(width, width)

    def forward(
        self, latent: Tensor, condition: Tensor, text: Tensor, context: Tensor, cos: Tensor, sin: Tensor, mask: Tensor
    ) -> tuple[Tensor, ...]:
        """The denoised latent, and what distractors and escapes return."""
        extra: list[Tensor] = []
        joins = [functools.partial(block.joined, text, context) for block in self.stack]
        for step in range(self.f.steps):
            latent, *more = self.step(latent, condition, joins, Tables(cos, sin, mask), 0.5 / (step + 1))
            extra += more
        return (latent, *extra)

    def step(
        self, latent: Tensor, condition: Tensor, joins: Sequence[Join], tables: Tables, rate: Tensor | float
    ) -> tuple[Tensor, ...]:
        """One step; ``joins`` give each block's attention the keys and values besides the chunk's own."""
        f, x, extra = self.f, latent, []
        weights: Tensor | None = None
        for block, join in zip(self.blocks, joins, strict=True):
            x, weights = block(x, condition, join, tables)
        if weights is not None:
            extra.append(weights)
        if f.gate:
            x = x * torch.softmax(x, dim=-1)
        if f.extra_output:
            extra.append(x.mean(dim=1))
        return (latent - self.velocity(x) * rate, *extra)

    @property
    def stack(self) -> list[Block]:
        """Its blocks."""
        return [block for block in self.blocks if isinstance(block, Block)]

    @property
    def tokens_in_front(self) -> int:
        """Keys that are not the chunk's own and stand in front of them."""
        return _CONTEXT_TOKENS * self.f.context + _TEXT_TOKENS * (self.f.prefix == "first")


def _split(x: Tensor) -> Tensor:
    return x.view(x.shape[0], x.shape[1], -1, _HEAD_DIM).transpose(1, 2)


def _shuffled(x: Tensor) -> Tensor:
    """``x`` through reshapes and permutes that cancel out."""
    return x.unsqueeze(1).permute(0, 1, 3, 2).mT.reshape(-1, *x.shape[1:]).view(x.shape)


def _rotated(x: Tensor, tables: Tables, kind: str) -> Tensor:
    if kind == "none":
        return x
    if kind == "split":
        left, right = x.chunk(2, dim=-1)
        return torch.cat([left * tables.cos - right * tables.sin, left * tables.sin + right * tables.cos], dim=-1)
    left, right = x[..., ::2], x[..., 1::2]
    turned = (left * tables.cos - right * tables.sin, left * tables.sin + right * tables.cos)
    return torch.stack(turned, dim=-1).flatten(-2)


def build(f: Features) -> tuple[Model, tuple[Tensor, ...]]:
    """The model and its inputs, drawn from ``f.seed`` in float64 and rounded to the model's dtype.

    The process's random state is left as it was.
    """
    dtype = getattr(torch, f.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(f.seed)
        model = Model(f).eval().to(dtype)
        tokens, width = f.frames * _FRAME_TOKENS, f.heads * _HEAD_DIM
        keys = tokens + _CONTEXT_TOKENS * f.context + _TEXT_TOKENS * (f.prefix != "none")
        shapes = [(f.batch, n, width) for n in (tokens, f.frames, _TEXT_TOKENS, _CONTEXT_TOKENS)]
        angles = torch.rand(tokens, _HEAD_DIM // 2) * 6.0
        inputs = [torch.randn(shape) for shape in shapes] + [angles.cos(), angles.sin()]
        return model, (*(tensor.to(dtype) for tensor in inputs), _mask(f, tokens, keys, dtype))


def _mask(f: Features, tokens: int, keys: int, dtype: torch.dtype) -> Tensor:
    keep = torch.rand(tokens, keys) < 0.7
    keep[:, 0] = True
    return torch.randn(tokens, keys).to(dtype) if f.mask == "bias" else keep
