"""Heads turned by position and by camera in one pass over memory: norm, rotary embedding, 4x4 matrices."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ..launching import Launch

ROWS = 32
"""Rows (one head of one token each) that one program turns."""


@triton.jit
def camera_kernel(
    heads_in, pool, slots, matrix, weight, cosine, sine, rotated, seen,
    rows, heads, tokens, eps, kept, frame, capacity,
    DIM: tl.constexpr, ROWS: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr, BOTH: tl.constexpr,
    KEPT: tl.constexpr,
):  # fmt: skip
    """``ROWS`` rows of ``[batch, tokens, heads, DIM]``; grid ``(ceil(rows / ROWS),)``.

    With ``KEPT`` the first ``kept`` tokens are in frames of ``pool`` [batch, capacity, frame, heads, DIM], the others
    in ``heads_in`` [batch, tokens - kept, heads, DIM].
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, DIM)
    inside = row < rows
    place = row.to(tl.int64)[:, None] * DIM + dims[None, :]
    if KEPT:
        x = _from_slots(heads_in, pool, slots, row, inside, heads, tokens, kept, frame, capacity, dims, DIM)
    else:
        x = tl.load(heads_in + place, mask=inside[:, None], other=0.0).to(tl.float32)
    if NORM:
        x = x * tl.rsqrt(tl.sum(x * x, 1) / DIM + eps)[:, None]
        x = x * tl.load(weight + dims).to(tl.float32)[None, :]
    token = row // heads
    if BOTH:
        turned = x
        if ROPE:
            table = (token % tokens)[:, None] * DIM + dims[None, :]
            even, odd = tl.split(tl.reshape(x, [ROWS, DIM // 2, 2]))
            other = tl.reshape(tl.join(-odd, even), [ROWS, DIM])
            turned = x * tl.load(cosine + table, mask=inside[:, None], other=0.0)
            turned += other * tl.load(sine + table, mask=inside[:, None], other=0.0)
        tl.store(rotated + place, turned.to(rotated.dtype.element_ty), mask=inside[:, None])
    even, odd = tl.split(tl.reshape(x, [ROWS, DIM // 4, 2, 2]))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    y0 = _seen(matrix, token, inside, 0, x0, x1, x2, x3)
    y1 = _seen(matrix, token, inside, 1, x0, x1, x2, x3)
    y2 = _seen(matrix, token, inside, 2, x0, x1, x2, x3)
    y3 = _seen(matrix, token, inside, 3, x0, x1, x2, x3)
    y = tl.reshape(tl.join(tl.join(y0, y2), tl.join(y1, y3)), [ROWS, DIM])
    tl.store(seen + place, y.to(seen.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _from_slots(heads_in, pool, slots, row, inside, heads, tokens, kept, frame, capacity, dims, DIM: tl.constexpr):
    """Reads each row from the slot of its frame, or from the fresh rows."""
    token, batch = (row // heads) % tokens, (row // heads) // tokens
    old, new = inside & (token < kept), inside & (token >= kept)
    slot = tl.load(slots + token // frame, mask=old, other=0).to(tl.int64)
    there = ((batch * capacity + slot) * frame + token % frame) * heads + row % heads
    here = (batch * (tokens - kept) + token - kept).to(tl.int64) * heads + row % heads
    x = tl.load(pool + there[:, None] * DIM + dims[None, :], mask=old[:, None], other=0.0).to(tl.float32)
    return x + tl.load(heads_in + here[:, None] * DIM + dims[None, :], mask=new[:, None], other=0.0).to(tl.float32)


@triton.jit
def _seen(matrix, token, inside, i: tl.constexpr, x0, x1, x2, x3):
    """Element ``i`` of the product of each token's matrix with its groups of four channels."""
    base = matrix + token * 16 + 4 * i
    found = tl.load(base, mask=inside, other=0.0)[:, None] * x0
    found += tl.load(base + 1, mask=inside, other=0.0)[:, None] * x1
    found += tl.load(base + 2, mask=inside, other=0.0)[:, None] * x2
    return found + tl.load(base + 3, mask=inside, other=0.0)[:, None] * x3


def camera_heads(
    heads: Tensor,
    matrix: Tensor,
    weight: Tensor | None,
    eps: float,
    cosine: Tensor | None,
    sine: Tensor | None,
    both: bool,
) -> Tensor:
    """See ``kernels.camera.camera_heads``; everything is contiguous, ``matrix`` and tables are float32."""
    batch, tokens, count, dim = heads.shape
    result = heads.new_empty((2 * batch if both else batch, tokens, count, dim))
    given = (heads, None, None, matrix, weight, cosine, sine)
    sizes = (batch * tokens * count, count, tokens, eps, 0, 1, 1)
    launch = _launch(sizes, dim, _kinds(given), both)
    launch.run((*given, result, result[batch:] if both else result), result.get_device())
    return result


def camera_heads_kept(
    pool: Tensor, slots: Tensor, heads: Tensor, matrix: Tensor, cosine: Tensor | None, sine: Tensor | None
) -> Tensor:
    """See ``kernels.camera_kept.camera_heads_kept``; everything is contiguous, ``matrix`` and tables are float32."""
    batch, capacity, frame, count, dim = pool.shape
    kept = slots.shape[0] * frame
    tokens = kept + heads.shape[1]
    result = heads.new_empty((2 * batch, tokens, count, dim))
    given = (heads, pool, slots, matrix, None, cosine, sine)
    sizes = (batch * tokens * count, count, tokens, 0.0, kept, frame, capacity)
    launch = _launch(sizes, dim, _kinds(given), True)
    launch.run((*given, result, result[batch:]), result.get_device())
    return result


_Kinds = tuple[Any, ...]
"""The device, and of each tensor the dtype; ``None`` where there is none."""


def _kinds(given: Sequence[Tensor | None]) -> _Kinds:
    assert given[0] is not None
    return given[0].get_device(), *(None if tensor is None else tensor.dtype for tensor in given)


@functools.lru_cache(maxsize=256)
def _launch(sizes: tuple[float, ...], dim: int, kinds: _Kinds, both: bool) -> Launch:
    """The launch for such sizes and tensors: compiled code belongs to a device and to dtypes."""
    _, _, pool, _, _, weight, cosine, _ = kinds
    flags = {"NORM": weight is not None, "ROPE": cosine is not None, "BOTH": both, "KEPT": pool is not None}
    return Launch(camera_kernel, (triton.cdiv(sizes[0], ROWS),), sizes, {"DIM": dim, "ROWS": ROWS, **flags})
