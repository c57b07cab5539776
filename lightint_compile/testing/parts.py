"""Small ideas of modules that drawn worlds are composed of; each takes tokens ``[batch, tokens, WIDTH]``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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
    """Buffers that change in the forward pass, and what differs in training mode."""

    count: Tensor
    mean: Tensor

    def __init__(self, f: WorldFeatures) -> None:
        super().__init__()
        self.f = f
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.batch_norm = nn.BatchNorm1d(WIDTH) if f.train == "norm" else None

    def forward(self, x: Tensor) -> Tensor:
        """The tokens after what the state adds to them."""
        if self.f.state == "count":
            self.count.add_(1)
            x = x + 0.1 * self.count
        if self.f.state == "mean":
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean((0, 1)))
            x = x + self.mean
        if self.f.state == "assign":
            x, self.mean = x + self.mean, x.detach().mean((0, 1))
        if self.batch_norm is not None:
            x = self.batch_norm(x.transpose(1, 2)).transpose(1, 2)
        if self.f.train == "branch" and self.training:
            x = x * 2.0
        return x


def write_cache(cache: Tensor, x: Tensor, how: str) -> Tensor:
    """Tokens ``x`` written into ``cache [batch, slots, WIDTH]`` in place, and what reading it adds to them.

    ``roll`` keeps the first slot and lets the others make room for the tokens.
    """
    count, new = x.shape[1], x.detach()
    if how == "slice":
        cache[:, :count] = new
    elif how == "index":
        cache.index_copy_(1, torch.arange(count), new)
    else:
        cache[:, 1:-count] = cache[:, 1 + count :].clone()
        cache[:, -count:] = new
    return x + cache.mean(1, keepdim=True)


def flow(how: str, block: nn.Module, x: Tensor, rows: Tensor | None) -> Tensor:
    """A block with control flow around it."""
    if how == "checkpoint":
        return checkpoint(block, x, rows, use_reentrant=False)[0]
    if how == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return block(x, rows)[0].to(x.dtype)
    if how == "grad-off":
        with torch.no_grad():
            return block(x, rows)[0]
    x = block(x, rows)[0]
    if how == "cond":
        return torch.cond(x.sum() > 0, lambda y: y * 2.0, lambda y: y - 1.0, (x,))
    if how == "while":
        return _doubled_until(x)
    if how == "break":
        torch._dynamo.graph_break()
    if how == "vmap":
        return torch.func.vmap(lambda row: row * 2.0 + row.sum(0))(x)
    if how == "item" and x.sum().item() > 0:
        return x * 2.0
    if how == "reduce":
        return x + x.sum().amax() + x.mean().sum(0)
    return x


def _doubled_until(x: Tensor) -> Tensor:
    count = torch.zeros((), dtype=torch.int64)
    return torch._higher_order_ops.while_loop(lambda i, y: i < 2, lambda i, y: (i + 1, y * 1.5), (count, x))[1]
