"""The operators of flash attention packages on samples in a row, as reference implementations on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SCHEMA = (
    "_flash_attn_varlen_forward(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, "
    "SymInt max_seqlen_q, SymInt max_seqlen_k, float dropout_p, float softmax_scale, bool causal, "
    "SymInt window_size_left=-1, SymInt window_size_right=-1, float softcap=0., Tensor? alibi_slopes=None, "
    "bool return_softmax=False, Tensor? block_table=None, Tensor? leftpad_k=None, Tensor? seqused_k=None, "
    "bool zero_tensors=False) -> (Tensor, Tensor, Tensor, Tensor)"
)


def reference(q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Each sample of queries ``[tokens, heads, head_dim]`` on its own sample of keys."""
    scale, causal = rest[3], rest[4]
    out = torch.empty_like(q)
    queries, keys = starts_q.tolist(), starts_k.tolist()
    for place in range(len(queries) - 1):
        rows, read = slice(*queries[place : place + 2]), slice(*keys[place : place + 2])
        sample = [x.transpose(0, 1) for x in (q[rows], k[read], v[read])]
        given = {"scale": scale, "is_causal": causal, "enable_gqa": q.shape[1] != k.shape[1]}
        out[rows] = F.scaled_dot_product_attention(*sample, **given).transpose(0, 1)
    return out, q.new_zeros(q.shape[1], q.shape[0]), q.new_empty(0), q.new_empty(0)


@contextmanager
def registered() -> Iterator[Any]:
    """The operator is there while the context lasts."""
    library = torch.library.Library("flash_attn", "FRAGMENT")
    library.define(SCHEMA)
    library.impl("_flash_attn_varlen_forward", reference, "CPU")
    library.impl(
        "_flash_attn_varlen_forward",
        lambda q, *_: (torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0]), q.new_empty(0), q.new_empty(0)),
        "Meta",
    )
    try:
        yield torch.ops.flash_attn._flash_attn_varlen_forward.default
    finally:
        library._destroy()
