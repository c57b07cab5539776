"""Attention in the spellings that a generated model draws from; every spelling computes the same thing."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lightint_compile.testing.features import Features


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, f: Features) -> tuple[Tensor, Tensor | None]:
    """Attention as ``f`` spells it.

    Args:
        query: ``[batch, heads, tokens, head_dim]``; key and value likewise, with ``f.key_heads`` heads if it is not 0.
        mask: ``[tokens, keys]``, boolean (true where kept) or float, or ``None``.

    Returns:
        The result ``[batch, heads, tokens, head_dim]``, and the weights where ``f.escape`` asks for them.
    """
    if f.key_heads:
        key, value = (_repeated(x, query.shape[1] // x.shape[1], f.repeat) for x in (key, value))
    scale = 1.0 / math.sqrt(query.shape[-1])
    if f.product == "fused":
        return F.scaled_dot_product_attention(query, key, value, mask, scale=scale), None
    query, key, after = _scaled(query, key, scale, f.scale)
    scores = _scores(query, key, f) if f.scale != "divided" else _scores(query, key, f) / (1.0 / scale)
    scores = _masked(scores if after is None else scores * after, mask, f.mask)
    dtype = scores.dtype
    weights = _softmax(scores.float() if f.upcast and dtype != torch.float64 else scores, f.softmax).to(dtype)
    return _weighted(weights, value, f), weights if f.escape else None


def _repeated(x: Tensor, times: int, how: str) -> Tensor:
    if how == "interleave":
        return x.repeat_interleave(times, dim=1)
    batch, heads, tokens, width = x.shape
    return x[:, :, None].expand(batch, heads, times, tokens, width).reshape(batch, heads * times, tokens, width)


def _scaled(query: Tensor, key: Tensor, scale: float, where: str) -> tuple[Tensor, Tensor, float | None]:
    if where == "query":
        return query * scale, key, None
    if where == "key":
        return query, scale * key, None
    if where == "split":
        return query * scale**0.5, key * scale**0.5, None
    return query, key, scale if where == "after" else None


def _scores(query: Tensor, key: Tensor, f: Features) -> Tensor:
    batch, heads, tokens, width = query.shape
    if f.product == "einsum":
        return torch.einsum("bhid,bhjd->bhij", query, key)
    if f.product == "tokens-first":
        return torch.einsum("bqhd,bkhd->bhqk", query.transpose(1, 2), key.transpose(1, 2))
    if f.product == "matmul":
        return query @ _transposed(key, f.key_layout)
    folded = query.reshape(batch * heads, tokens, width)
    other = key.reshape(batch * heads, -1, width).transpose(1, 2)
    if f.product == "bmm":
        return torch.bmm(folded, other).view(batch, heads, tokens, -1)
    start = torch.zeros(batch * heads, tokens, other.shape[-1], dtype=query.dtype)
    return torch.baddbmm(start, folded, other, beta=0, alpha=1).view(batch, heads, tokens, -1)


def _transposed(key: Tensor, layout: str) -> Tensor:
    if layout == "transpose":
        return key.transpose(-2, -1)
    if layout == "permute":
        return key.transpose(1, 2).permute(0, 2, 3, 1)
    return key.mT.contiguous()


def _masked(scores: Tensor, mask: Tensor | None, kind: str) -> Tensor:
    if mask is None:
        return scores
    if kind == "bool":
        return scores.masked_fill(~mask, -math.inf)
    if kind == "where":
        return torch.where(mask, scores, -math.inf)
    if kind == "causal":
        keep = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        return scores.masked_fill(~keep, -math.inf)
    return scores + mask


def _softmax(scores: Tensor, how: str) -> Tensor:
    if how == "exp":
        weights = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
        return weights / weights.sum(dim=-1, keepdim=True)
    if how == "logsumexp":
        return torch.exp(scores - torch.logsumexp(scores, dim=-1, keepdim=True))
    if how == "less-maximum":
        scores = scores - scores.max(dim=-1, keepdim=True).values
    return torch.softmax(scores, dim=-1)


def _weighted(weights: Tensor, value: Tensor, f: Features) -> Tensor:
    batch, heads, tokens, keys = weights.shape
    if f.product in ("bmm", "baddbmm"):
        folded = torch.bmm(weights.view(batch * heads, tokens, keys), value.reshape(batch * heads, keys, -1))
        return folded.view(batch, heads, tokens, -1)
    if f.product == "einsum":
        return torch.einsum("bhij,bhjd->bhid", weights, value)
    if f.product == "tokens-first":
        return torch.einsum("bhqk,bkhd->bqhd", weights, value.transpose(1, 2)).transpose(1, 2)
    return weights @ value
