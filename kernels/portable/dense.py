"""Attention over every key under a bias of keys, for those elements of a batch that a tensor on the device names.

This is what becomes of sparse attention where a mask turns out to leave frames out. The host does not know whether it
does, so the launch is always there; a program of another element of the batch ends at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from ..spans import Spans
from ..triton_compat import OPTIONS, stated
from .attention import adjacent, online
from .geometry import load_rows, places_of, rows_of


@triton.jit
def _span(
    rows, key, value, bias, tokens, total, mass, peak, factor,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The running softmax over all tokens of one span."""
    dims = tl.arange(0, DIM)
    pieces = tl.arange(0, KEYS)
    for start in range(0, tokens, KEYS):
        place = start + pieces
        real = place < tokens
        added = tl.load(bias + place, mask=real, other=float("-inf"))
        here = added > float("-inf")
        inside = here[:, None] & (dims < HEAD_DIM)[None, :]
        keys, values = load_rows(key, place, dims, inside), load_rows(value, place, dims, inside)
        offset = tl.where(here, added * 1.4426950408889634, 0.0)
        total, mass, peak = online(rows, tl.trans(keys), values, here, total, mass, peak, factor, offset)
    return total, mass, peak


@triton.jit
def dense_kernel(
    query, out, prefix_key, context_key, current_key, prefix_value, context_value, current_value, bias, wanted,
    query_batch, query_head, query_token, out_batch, out_head, out_token,
    pk_batch, pk_head, pk_token, ck_batch, ck_head, ck_token, uk_batch, uk_head, uk_token,
    pv_batch, pv_head, pv_token, cv_batch, cv_head, cv_token, uv_batch, uv_head, uv_token,
    bias_batch, heads, groups, queries, prefix, context, current, factor,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """``QUERIES`` tokens of one head; grid ``(pieces of the queries, batch * heads)``."""
    batch = (tl.program_id(1) // heads).to(tl.int64)
    if tl.load(wanted + batch) != 0:
        head = tl.program_id(1) % heads
        source = (head // groups).to(tl.int64)
        unit = tl.cast(factor, tl.float32)  # Inductor passes Python floats in 64 bits
        dims = tl.arange(0, DIM)
        tokens = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
        inside = (tokens < queries)[:, None] & (dims < HEAD_DIM)[None, :]
        own = rows_of(query, query_batch, query_head, query_token, batch, head)
        rows = load_rows(own, tokens, dims, inside)
        total = tl.zeros([QUERIES, DIM], tl.float32)
        mass = tl.zeros([QUERIES], tl.float32)
        peak = tl.full([QUERIES], float("-inf"), tl.float32)
        own_bias = bias + batch * bias_batch
        keys = rows_of(prefix_key, pk_batch, pk_head, pk_token, batch, source)
        values = rows_of(prefix_value, pv_batch, pv_head, pv_token, batch, source)
        total, mass, peak = _span(rows, keys, values, own_bias, prefix, total, mass, peak, unit, HEAD_DIM, DIM, KEYS)
        keys = rows_of(context_key, ck_batch, ck_head, ck_token, batch, source)
        values = rows_of(context_value, cv_batch, cv_head, cv_token, batch, source)
        total, mass, peak = _span(
            rows, keys, values, own_bias + prefix, context, total, mass, peak, unit, HEAD_DIM, DIM, KEYS
        )
        keys = rows_of(current_key, uk_batch, uk_head, uk_token, batch, source)
        values = rows_of(current_value, uv_batch, uv_head, uv_token, batch, source)
        total, mass, peak = _span(
            rows, keys, values, own_bias + (prefix + context), current, total, mass, peak, unit, HEAD_DIM, DIM, KEYS
        )
        result = total / tl.where(mass == 0.0, 1.0, mass)[:, None]
        target = rows_of(out, out_batch, out_head, out_token, batch, head)
        tl.store(places_of(target, tokens, dims), result.to(out.dtype.element_ty), mask=inside)


@triton_op("lightint::portable_attend_all", mutates_args={})
def portable_attend_all(
    out: Tensor, query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], lengths: Sequence[int],
    bias: Tensor, wanted: Tensor, scale: float,
) -> Tensor:  # fmt: skip
    """``out`` with attention over three spans with adjacent dims, of stated lengths, where ``wanted`` is not zero.

    For graphs, which write to nothing they were given: a copy of ``out`` is written to.
    """
    result = out.clone()
    grid, sizes, options = dense_arguments(query, result, [*keys, *values], lengths, bias, scale)
    wrap_triton(dense_kernel)[grid](query, result, *keys, *values, bias, wanted, *sizes, **options, **stated())
    return result


def dense_arguments(
    query: Tensor, out: Tensor, spans: Sequence[Tensor], lengths: Sequence[int], bias: Tensor, scale: float
) -> tuple[tuple[int, int], list[Any], dict[str, Any]]:
    """Grid, sizes and options of the launch; ``spans`` are three of keys, then three of values."""
    batch, heads, tokens, head_dim = query.shape
    queries = 128 if tokens > 64 else 64
    sizes = [
        *[tensor.stride(i) for tensor in (query, out, *spans) for i in range(3)],
        bias.stride(0) if bias.shape[0] > 1 else 0, heads, heads // spans[2].shape[1], tokens, *lengths,
        scale * 1.4426950408889634,  # log2(e): the softmax runs in base 2
    ]  # fmt: skip
    options = {
        "HEAD_DIM": head_dim, "DIM": max(16, triton.next_power_of_2(head_dim)), "QUERIES": queries, "KEYS": 64,
        "num_warps": 8 if queries == 128 and head_dim > 64 else 4, "num_stages": 3,
    }  # fmt: skip
    return (triton.cdiv(tokens, queries), batch * heads), sizes, options


def attend_all(
    out: Tensor, query: Tensor, keys: Spans, values: Spans, bias: Tensor, wanted: Tensor, scale: float
) -> Tensor:
    """Same contract as :func:`reference.attend_all`, without reading ``wanted``; writes into a real ``out``."""
    query, spans = adjacent(query), [adjacent(span) for span in (*keys.filled, *values.filled)]
    lengths, bias, chosen = [key.shape[2] for key in keys], bias.float().contiguous(), wanted.int()
    if type(out) is not Tensor:
        found: Tensor = torch.ops.lightint.portable_attend_all(
            out, query, spans[:3], spans[3:], lengths, bias, chosen, scale
        )
        return found
    grid, sizes, options = dense_arguments(query, out, spans, lengths, bias, scale)
    dense_kernel[grid](query, out, *spans, bias, chosen, *sizes, **options, **OPTIONS)
    return out
