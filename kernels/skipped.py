"""Blocks that a query tile does not read still take part by their means: one key and one value for each.

A block left out of a softmax is missing twice, in the sum of weights and in the sum of values. Its mean key says how
much weight it would have had, near enough where attention is flat, which is where leaving blocks out loses most; its
mean value says what that weight would have brought. A block of 128 tokens becomes one.
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
        offsets: what is added to the logits of block means, where they were asked for: see :class:`Means`.
    """

    lists: Tensor
    counts: Tensor
    offsets: Tensor | None = None


class Means(NamedTuple):
    """Keys and values that stand for whole blocks.

    Attributes:
        key, value: ``[batch, key_heads, key_blocks, head_dim]``, contiguous, the dtype of the tokens.
        offsets: ``[batch, query_heads, query_tiles, key_blocks]``, contiguous, float32 (float64 for float64 tokens):
            the log of the block's token count, minus infinity for a block that the query tile reads.
    """

    key: Tensor
    value: Tensor
    offsets: Tensor


def joined(pools: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Pooled context (if any) and current tokens as the keys or values of :class:`Means`, without their spreads."""
    return torch.cat([pool[..., :-1].to(dtype) for pool in pools], 2).contiguous()
