"""Small ideas of modules that drawn worlds are composed of; each takes tokens ``[batch, tokens, WIDTH]``."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightint_compile.testing.features import Features
from lightint_compile.testing.spelled import attend
from lightint_compile.testing.world_features import WorldFeatures

WIDTH = 8
TEXT_WIDTH = 6
_HEAD = 4


class TextBranch(nn.Module):
    """What depends on the prompt alone: ``[batch, length, TEXT_WIDTH]`` (or ids ``[batch, length]``) to ``WIDTH``."""

    scale: Tensor | None

    def __init__(self, f: WorldFeatures) -> None:
        super().__init__()
        self.kind = f.text
        self.project = nn.Embedding(16, WIDTH) if f.text == "ids" else nn.Linear(TEXT_WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH) if f.text in ("norm", "deep") else None
        self.inner = nn.Linear(WIDTH, WIDTH) if f.text == "deep" else None
        self.register_buffer("scale", torch.full((WIDTH,), 1.5) if f.text == "buffer" else None)
        self.pool = nn.Linear(TEXT_WIDTH, WIDTH) if f.text == "pooled" else None

    def forward(self, text: Tensor, pooled: Tensor | None) -> Tensor:
        """Rows ``[batch, length, WIDTH]``."""
        rows = torch.sin(self.project(text))
        if self.norm is not None:
            rows = F.silu(self.norm(rows))
        if self.inner is not None:
            rows = rows + F.gelu(self.inner(rows))
        if self.scale is not None:
            rows = rows * self.scale
        if self.pool is not None and pooled is not None:
            rows = rows + self.pool(pooled)[:, None]
        return rows


class Block(nn.Module):
    """Attention over the tokens and further rows, and modulation."""

    def __init__(self, f: WorldFeatures) -> None:
        super().__init__()
        self.f = f
        self.spelling = Features(product=f.attention)
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.rows = nn.Linear(WIDTH, 2 * WIDTH) if f.rows else None

    def heads(self, x: Tensor) -> list[Tensor]:
        """Query, key and value ``[batch, heads, tokens, head]``."""
        return [part.unflatten(-1, (-1, _HEAD)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1)]

    def forward(
        self, x: Tensor, rows: Tensor | None = None, context: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The tokens, and their keys and values."""
        query, key, value = self.heads(x)
        kept = key, value
        if rows is not None:
            _, more_keys, more_values = self.heads(rows)
            key, value = torch.cat([more_keys, key], 2), torch.cat([more_values, value], 2)
        if context is not None:
            key, value = torch.cat([context[0], key], 2), torch.cat([context[1], value], 2)
        seen, _ = attend(query, key, value, None, self.spelling)
        x = x + F.gelu(self.out(seen.transpose(1, 2).flatten(2)))
        if self.rows is not None:
            shift, scale = self.rows(F.silu(x[:, ::2])).repeat_interleave(2, 1)[:, : x.shape[1]].chunk(2, -1)
            x = x * (1 + scale.tanh()) + shift
        return x, kept


class State(nn.Module):
    """Buffers and attributes that change in the forward pass, and what differs in training mode."""

    count: Tensor
    mean: Tensor

    def __init__(self, f: WorldFeatures) -> None:
        super().__init__()
        self.f = f
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.batch_norm = nn.BatchNorm1d(WIDTH) if f.train == "norm" else None
        self.calls = 0
        self.table: Tensor | None = None
        self.past: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """The tokens after what the state adds to them."""
        if self.f.state != "none":
            x = _STATES[self.f.state](self, x)
        if self.batch_norm is not None:
            x = self.batch_norm(x.transpose(1, 2)).transpose(1, 2)
        if self.f.train == "branch" and self.training:
            x = x * 2.0
        return F.dropout(x, 0.5, self.training) if self.f.train == "dropout" else x


def _counted(state: State, x: Tensor) -> Tensor:
    state.count.add_(1)
    return x + 0.1 * state.count


def _averaged(state: State, x: Tensor) -> Tensor:
    state.mean.mul_(0.9).add_(0.1 * x.detach().mean((0, 1)))
    return x + state.mean


def _assigned(state: State, x: Tensor) -> Tensor:
    x, state.mean = x + state.mean, x.detach().mean((0, 1))
    return x


def _numbered(state: State, x: Tensor) -> Tensor:
    """A Python number that is an attribute."""
    state.calls += 1
    return x + 0.1 * state.calls


def _made_once(state: State, x: Tensor) -> Tensor:
    """A table that the first call makes, as those of rotary embeddings are."""
    if state.table is None or state.table.shape[0] < x.shape[1]:
        state.table = torch.arange(x.shape[1]).to(x.dtype).cos()
    return x * state.table[: x.shape[1], None]


def _remembered(state: State, x: Tensor) -> Tensor:
    """Means of the two calls before in a list that is an attribute."""
    state.past = [*(state.past or [x.new_zeros(WIDTH)] * 2), x.detach().mean((0, 1))][-2:]
    return x + sum(state.past)


_STATES: dict[str, Callable[[State, Tensor], Tensor]] = {
    "count": _counted,
    "mean": _averaged,
    "assign": _assigned,
    "number": _numbered,
    "table": _made_once,
    "list": _remembered,
}


#: What a world writes in place of what it was given, and how it goes on with it.
IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "whole": lambda given: given.mul_(0.5),
    "view": lambda given: (given[:, :1].add_(1.0), given)[1],
    "slice": lambda given: (given[:, -1].fill_(0.25), given)[1],
    "out": lambda given: torch.mul(given.detach(), 0.5, out=given),
    "data": lambda given: (given.data.mul_(0.5), given)[1],
    "and-back": lambda given: given.add_(1.0).sub_(1.0),
}


#: Random numbers: of the video, or in the branch that depends on the prompt alone.
RANDOM: dict[str, Callable[[Tensor], Tensor]] = {
    "noise": lambda x: x + torch.randn_like(x),
    "dropout": lambda x: F.dropout(x, 0.5, True),
    "twice": lambda x: x + torch.rand_like(x) - 2.0 * torch.rand_like(x),
    "rows": lambda x: x * (1.0 + torch.rand_like(x)),
    "unused": lambda x: (torch.randn(3), x + torch.randn(x.shape[-1]))[1],
}
