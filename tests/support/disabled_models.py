"""Small video transformers whose attention is behind ``torch.compiler.disable``, spelled as their authors spell it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS = 16, 2


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


disabled = torch.compiler.disable(attention)


@torch.compiler.disable
def shared(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator in front of the disabled one, which copies its marks."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


@logged
@torch.compiler.disable
def wrapped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


@functools.partial(torch.compiler.disable, recursive=False)
def shallow(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


@torch.compiler.disable(reason="an old kernel")
def printing(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """It does not trace: what it does depends on values."""
    if float(q.sum()) > 1e9:
        raise ValueError("the queries are too large")
    return F.scaled_dot_product_attention(q, k, v)


def made(scale: float) -> Callable[..., Any]:
    @torch.compiler.disable
    def scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)

    return scaled


KERNELS = {"sdpa": made(0.25), "none": None}


class Processor:
    """Attention as an object that modules hold."""

    @torch.compiler.disable
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class Block(nn.Module):
    """Modulated self-attention; ``attend`` is what a class below makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Linear(WIDTH, 2 * WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        shift, scale = self.modulation(F.silu(vec)).chunk(2, -1)
        parts = self.qkv(x * (1 + scale) + shift).unflatten(-1, (3 * HEADS, -1)).transpose(1, 2)
        return x + self.out(self.attend(*parts.chunk(3, 1)).transpose(1, 2).flatten(2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError


class OfModule(Block):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return disabled(q, k, v)


class Wrapped(Block):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return wrapped(q, k, v)


class Shallow(Block):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return shallow(q, k, v)


class Method(Block):
    @torch.compiler.disable
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class Static(Block):
    @staticmethod
    @torch.compiler.disable
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class Looked(Block):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kernel = KERNELS["sdpa"]
        assert kernel is not None
        return kernel(q, k, v)


class Held(Block):
    def __init__(self) -> None:
        super().__init__()
        self.processor = Processor()

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.processor(q, k, v)


class Core(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class Inner(Block):
    """A part that is disabled as an object."""

    def __init__(self) -> None:
        super().__init__()
        self.core = torch.compiler.disable(Core())

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.core(q, k, v)


class Patched(Block):
    """A part whose forward was disabled from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Core()
        self.core.forward = torch.compiler.disable(self.core.forward)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.core(q, k, v)


class Shared(Block):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return shared(q, k, v)


class Printing(Block):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return printing(q, k, v) + shared(q, k, v)


SPELLINGS = (OfModule, Wrapped, Shallow, Method, Static, Looked, Held, Inner, Patched)


class Video(nn.Module):
    """Patches of a latent [B, 4, F, H, W], blocks modulated by ``vec`` [B, F, D]; two of the kind, or one of each."""

    def __init__(self, *blocks: type[Block]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch = nn.Conv3d(4, WIDTH, 1)
        self.blocks = nn.ModuleList(block() for block in (blocks if len(blocks) > 1 else 2 * blocks))
        self.eval().requires_grad_(False)

    def forward(self, latent: Tensor, vec: Tensor) -> Tensor:
        tokens = self.patch(latent).flatten(2).transpose(1, 2)
        vec = vec.repeat_interleave(latent.shape[3] * latent.shape[4], 1)
        for block in self.blocks:
            tokens = block(tokens, vec)
        return tokens


def inputs(frames: int = 2) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(1, 4, frames, 2, 4, generator=draw), torch.randn(1, frames, WIDTH, generator=draw)
