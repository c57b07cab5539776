"""``lightint::wide_attention``: dense attention whose heads are wider than flash attention takes, by products.

Video decoders attend with one head of 384 to 1,024 channels. PyTorch's flash attention ends at 256, and its
memory-efficient operator takes such heads at a small part of the rate of tensor cores. Two products of matrices run at
that rate, and the softmax between them reads and writes scores through memory, which heads this wide pay for. Queries
go in rounds, so that the memory for scores has a bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, autocast
from torch.library import Library
from torch.nn import functional as F

from lightint_compile.errors import InputError

from .checks import no_gradient
from .mixed_linear import obstacle

SCHEMA = "wide_attention(Tensor query, Tensor key, Tensor value, Tensor? mask, float? scale) -> Tensor"

WIDEST_FLASH = 256
"""The head_dim up to which flash attention runs."""

FEWEST = 1 << 24
"""Scores of a call from which products are faster, as measured; fewer go to PyTorch's operator."""

DTYPES = (torch.bfloat16, torch.float16)
"""Of operands that go by products."""

SCORES = 1 << 26
"""Scores that are held at once: 256 MiB in float32, and half of it for their weights."""

_library = Library("lightint", "FRAGMENT")


def wide_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """``scaled_dot_product_attention`` for wide heads; no gradients.

    Scores are float32. Their weights are rounded to the dtype of the values and then divided by their sums in float32,
    as in flash attention.

    Args:
        query: ``[batch, heads, queries, head_dim]``.
        key, value: ``[batch, heads, keys, ...]`` of the query's dtype.
        mask: broadcasts to ``[batch, heads, queries, keys]``; bool (True takes part), or numbers added to the scores.
        scale: of the scores; ``head_dim ** -0.5`` unless given.

    Returns:
        ``[batch, heads, queries, value_dim]``, contiguous. A query that no key takes part for has zeros.

    Raises:
        InputError: tensors that do not fit together, or a gradient that is asked for.
    """
    return torch.ops.lightint.wide_attention(query, key, value, mask, scale)


def _of_any(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """The specification, in plain torch."""
    _check(query, key, value, mask)
    with autocast(query.device.type, enabled=False):
        return F.scaled_dot_product_attention(query, key, value, mask, scale=scale).contiguous()


def _on_gpu(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    _check(query, key, value, mask)
    few = query.shape[:3].numel() * key.shape[2] < FEWEST or 0 in (query.shape[3], value.shape[3])
    if few or query.dtype not in DTYPES or obstacle(query.device):
        return _of_any(query, key, value, mask, scale)
    with torch.cuda.device(query.device):
        return by_products(query, key, value, mask, query.shape[-1] ** -0.5 if scale is None else scale)


class Round(NamedTuple):
    """Rows of heads whose scores are held at once: ``[heads, rows]`` from a head and a row on, heads of all samples."""

    head: int
    heads: int
    row: int
    rows: int


def rounds(heads: int, rows: int, width: int) -> Iterator[Round]:
    """All rows of ``width`` scores of all heads: whole heads where several fit, else runs of rows of one."""
    together = max(1, min(heads, SCORES // (rows * width)))
    run = rows if together > 1 else max(1, min(rows, SCORES // width))
    for head in range(0, heads, together):
        for row in range(0, rows, run):
            yield Round(head, min(together, heads - head), row, min(run, rows - row))


def by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """What :func:`wide_attention` gives on a GPU."""
    from .portable.row_weights import ALIGNED, fill_row_weights

    batch, heads, rows, _ = query.shape
    keys = key.shape[2]
    width = keys + -keys % ALIGNED
    spread = None if mask is None else mask.expand(batch, heads, rows, keys)
    query, key, value = (each.flatten(0, 1) for each in (query, key, value))
    out = query.new_empty((batch * heads, rows, value.shape[2]))
    every = list(rounds(batch * heads, rows, width))
    most = max(each.heads * each.rows for each in every)
    held, masses = (query.new_empty(most * many, dtype=torch.float32) for many in (width, 1))
    weights = torch.empty_like(held, dtype=query.dtype)
    for each in every:
        chosen, run = slice(each.head, each.head + each.heads), slice(each.row, each.row + each.rows)
        scores, shares = (_rows(memory, each, width)[..., :keys] for memory in (held, weights))
        mass = _rows(masses, each, 1)
        torch.bmm(query[chosen, run], key[chosen].mT, out_dtype=torch.float32, out=scores)
        fill_row_weights(scores, shares, mass, spread, each.head, each.row, scale)
        torch.div(torch.bmm(shares, value[chosen], out_dtype=torch.float32), mass, out=out[chosen, run])
    return out.view(batch, heads, rows, out.shape[2])


def _rows(memory: Tensor, each: Round, width: int) -> Tensor:
    """``[heads, rows, width]`` at the front of a flat memory."""
    return memory[: each.heads * each.rows * width].view(each.heads, each.rows, width)


def _check(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if {query.dim(), key.dim(), value.dim()} != {4}:
        what = "queries, keys and values are not [batch, heads, tokens, ...]"
        raise InputError(what, where="wide_attention", why=shapes)
    if key.shape[3] != query.shape[3] or key.shape[:2] != query.shape[:2] or key.shape[:3] != value.shape[:3]:
        raise InputError("queries, keys and values do not fit together", where="wide_attention", why=shapes)
    if len({query.dtype, key.dtype, value.dtype}) > 1:
        raise InputError("queries, keys and values differ in dtype", where="wide_attention", why=str(key.dtype))
    if mask is not None and mask.dtype not in (torch.bool, query.dtype):
        raise InputError("the mask is neither bool nor of the query's dtype", where="wide_attention: mask")


def _fake(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    _check(query, key, value, mask)
    return query.new_empty((*query.shape[:3], value.shape[3]))


_library.define(SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))
_library.impl("wide_attention", _of_any, "CompositeExplicitAutograd")
_library.impl("wide_attention", _on_gpu, "CUDA")
torch.library.register_fake("lightint::wide_attention", _fake, lib=_library)
torch.library.register_autograd("lightint::wide_attention", no_gradient, lib=_library)
