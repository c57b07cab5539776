"""Skipped blocks are approximated by a few mean keys and values.

A block that is left out of a softmax is missing twice: in the sum of weights and in the sum of values. A mean key
estimates the weight of its tokens; this is accurate where attention is flat, which is where leaving blocks out loses
most. A mean value stands for their values. With one part a block of 128 tokens becomes one token, with four parts four.
The parts of all blocks are the tiles of a finer layout (:meth:`Layout.finer`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Selection(NamedTuple):
    """The blocks that each query tile reads.

    Attributes:
        lists: int32 ``[batch, query_heads, query_tiles, width]``, ``index`` of the operators.
        counts: int32 ``[batch, query_heads, query_tiles]``.
        offsets: what is added to the logits of means, where they were asked for: see :class:`Means`.
    """

    lists: Tensor
    counts: Tensor
    offsets: Tensor | None = None


class Means(NamedTuple):
    """Keys and values that stand for parts of blocks, ``means`` in all: the tiles of a finer layout.

    Attributes:
        key, value: ``[batch, key_heads, means, head_dim]``, contiguous, the dtype of the tokens.
        offsets: ``[batch, query_heads, query_tiles, means]``, contiguous, float32 (float64 for float64 tokens): the log
            of the part's token count, minus infinity for a part of a block that the query tile reads.
    """

    key: Tensor
    value: Tensor
    offsets: Tensor


def joined(pools: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Pooled context (if any) and current tokens as the keys or values of :class:`Means`, without their spreads."""
    return torch.cat([pool[..., :-1].to(dtype) for pool in pools], 2).contiguous()
