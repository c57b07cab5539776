"""Keys and values that stand for parts of blocks, in one launch: means of tokens, or what was pooled beforehand."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ..tiles import Layout, volume
from .geometry import matrix_offsets, tile_tokens

_SMALL = 4096
"""Elements of a part that one warp averages; more of them leave too few loads in flight."""


@triton.jit
def _mean(tokens, places, exist, dims, stride, HEAD_DIM: tl.constexpr):
    inside = exist[:, None] & (dims < HEAD_DIM)[None, :]
    values = tl.load(tokens + matrix_offsets(places, dims, stride), mask=inside, other=0.0)
    return tl.sum(values.to(tl.float32), 0) / tl.sum(exist.to(tl.float32), 0)


@triton.jit
def means_kernel(
    context_key, current_key, context_value, current_value, key_out, value_out,
    context_key_batch, context_key_head, context_key_token, current_key_batch, current_key_head, current_key_token,
    context_value_batch, context_value_head, context_value_token,
    current_value_batch, current_value_head, current_value_token,
    heads, rows, context_means, means, context_frames, current_frames, height, width, high, wide,
    T: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    SLOTS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, POOLED: tl.constexpr,
):  # fmt: skip
    """One part ``(T, H, W)`` of one key head; grid ``(means * rows,)``, ``rows`` being batch * key heads.

    With ``POOLED`` what is given of the context are contiguous float32 ``[batch, heads, context_means, dim + 1]``.
    """
    part = tl.program_id(0) // rows
    row = (tl.program_id(0) % rows).to(tl.int64)
    batch, head = row // heads, row % heads
    dims = tl.arange(0, DIM)
    real = dims < HEAD_DIM
    from_context = part < context_means
    local = tl.where(from_context, part, part - context_means)
    frames = tl.where(from_context, context_frames, current_frames)
    places, exist = tile_tokens(local, tl.arange(0, SLOTS), frames, height, width, high, wide, T, H, W)
    # Two branches instead of a choice of addresses: what is pooled is float32.
    if from_context:
        if POOLED:
            source = (row * context_means + local) * (HEAD_DIM + 1) + dims
            key = tl.load(context_key + source, mask=real, other=0.0).to(tl.float32)
            value = tl.load(context_value + source, mask=real, other=0.0).to(tl.float32)
        else:
            keys = context_key + batch * context_key_batch + head * context_key_head
            values = context_value + batch * context_value_batch + head * context_value_head
            key = _mean(keys, places, exist, dims, context_key_token, HEAD_DIM)
            value = _mean(values, places, exist, dims, context_value_token, HEAD_DIM)
    else:
        keys = current_key + batch * current_key_batch + head * current_key_head
        values = current_value + batch * current_value_batch + head * current_value_head
        key = _mean(keys, places, exist, dims, current_key_token, HEAD_DIM)
        value = _mean(values, places, exist, dims, current_value_token, HEAD_DIM)
    target = (row * means + part) * HEAD_DIM + dims
    tl.store(key_out + target, key.to(key_out.dtype.element_ty), mask=real)
    tl.store(value_out + target, value.to(value_out.dtype.element_ty), mask=real)


def means_arguments(
    sources: tuple[Tensor, Tensor, Tensor, Tensor], finer: Layout, *, pooled: bool
) -> tuple[tuple[int], list[Any], dict[str, Any]]:
    """Grid, sizes and options of the launch; the tiles of ``finer`` are the parts.

    ``sources`` are keys of the context, of the current frames, and values of both; any tensor stands in for those of
    the context where there is none.
    """
    batch, heads, _, head_dim = sources[1].shape
    sizes = [
        *[tensor.stride(i) for tensor in sources for i in range(3)], heads, batch * heads, finer.context_blocks,
        finer.key_blocks, *finer.frames, finer.height, finer.width, finer.blocks_high, finer.blocks_wide,
    ]  # fmt: skip
    slots, dim = triton.next_power_of_2(volume(finer.tile)), triton.next_power_of_2(head_dim)
    options = {
        "T": finer.tile[0], "H": finer.tile[1], "W": finer.tile[2], "SLOTS": slots, "HEAD_DIM": head_dim, "DIM": dim,
        "POOLED": pooled, "num_warps": 1 if slots * dim <= _SMALL else 2,
    }  # fmt: skip
    return (int(finer.key_blocks) * batch * heads,), sizes, options
