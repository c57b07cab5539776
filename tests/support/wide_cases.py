"""Attention with wide heads: sizes, masks and the same in float64."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    """Sizes of one attention; ``mask`` is a kind, of which ``alone`` leaves rows without a key."""

    batch: int = 1
    heads: int = 1
    queries: int = 24
    keys: int = 100
    head_dim: int = 272
    value_dim: int = 272
    mask: str = "none"
    scale: float = 0.06


CASES = {
    "one head, rows in rounds": Case(),
    "keys of whole steps": Case(keys=128),
    "fewer keys than a step": Case(keys=5),
    "one query": Case(queries=1, keys=2500),
    "heads together": Case(2, 3, queries=7, keys=31),
    "heads in rounds of rows": Case(2, 2, queries=40, keys=90, mask="added"),
    "other values": Case(value_dim=48, mask="bool"),
    "a mask of numbers": Case(mask="added"),
    "padded keys": Case(2, 2, mask="padding"),
    "the least number of the dtype": Case(2, 2, keys=70, mask="least"),
    "keys that are all alike": Case(keys=9_000, queries=3, scale=0.0),
    "rows without a key": Case(2, 2, keys=70, mask="alone"),
    "large scores": Case(scale=4.0),
}


def operands(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys and values."""
    draw = torch.Generator().manual_seed(case.keys)
    rows = (case.queries, case.head_dim), (case.keys, case.head_dim), (case.keys, case.value_dim)
    return [torch.randn(case.batch, case.heads, *each, generator=draw).to(dtype) for each in rows]


def mask_of(case: Case, dtype: torch.dtype) -> Tensor | None:
    """The mask of a case, of another shape for each kind."""
    draw = torch.Generator().manual_seed(1)
    if case.mask == "none":
        return None
    if case.mask == "added":
        return torch.randn(1, case.heads, case.queries, case.keys, generator=draw).to(dtype)
    if case.mask == "padding":
        lengths = torch.arange(case.batch)[:, None, None, None] * 7 + 3
        return torch.arange(case.keys) < lengths
    seen = torch.rand(case.queries, case.keys, generator=draw) > 0.4
    if case.mask == "bool":
        return seen
    if case.mask == "least":
        seen[3] = False
        return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    seen[3], seen[case.queries - 1] = False, False
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -math.inf)


def exact(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The same in float64; a query without a key has zeros."""
    scores = query.double() @ key.double().mT * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.double()
    return scores.softmax(-1).nan_to_num(0.0) @ value.double()
