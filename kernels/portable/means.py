"""Keys and values that stand for whole blocks, in one launch: pooled keys in the tokens' dtype, means of values."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ..tiles import Layout, volume
from .geometry import matrix_offsets, tile_tokens


@triton.jit
def means_kernel(
    context_key_pool, current_key_pool, context_value, current_value, key_out, value_out,
    context_batch, context_head, context_token, current_batch, current_head, current_token,
    heads, rows, context_blocks, key_blocks, context_frames, current_frames, height, width, blocks_high, blocks_wide,
    T: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    SLOTS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, POOLED: tl.constexpr,
):  # fmt: skip
    """One block of one key head; grid ``(key blocks * rows,)``, ``rows`` being batch * key heads, which come first.

    Pools are contiguous float32 ``[batch, heads, blocks, dim + 1]``, as the context's values are with ``POOLED``.
    """
    block = tl.program_id(0) // rows
    row = (tl.program_id(0) % rows).to(tl.int64)
    batch, head = row // heads, row % heads
    dims = tl.arange(0, DIM)
    real = dims < HEAD_DIM
    from_context = block < context_blocks
    local = tl.where(from_context, block, block - context_blocks)
    in_context = (row * context_blocks + local) * (HEAD_DIM + 1)
    in_current = (row * (key_blocks - context_blocks) + local) * (HEAD_DIM + 1)
    key_pool = tl.where(from_context, context_key_pool + in_context, current_key_pool + in_current)
    key = tl.load(key_pool + dims, mask=real)
    target = (row * key_blocks + block) * HEAD_DIM + dims
    tl.store(key_out + target, key.to(key_out.dtype.element_ty), mask=real)

    frames = tl.where(from_context, context_frames, current_frames)
    slots = tl.arange(0, SLOTS)
    tokens, exist = tile_tokens(local, slots, frames, height, width, blocks_high, blocks_wide, T, H, W)
    if POOLED:
        mean = tl.load(context_value + in_context + dims, mask=dims < tl.where(from_context, HEAD_DIM, 0), other=0.0)
        exist = exist & (slots < tl.where(from_context, 0, SLOTS))
        base = current_value + batch * current_batch + head * current_head
        stride = current_token
    else:
        mean = tl.zeros([DIM], tl.float32)
        base = tl.where(
            from_context,
            context_value + batch * context_batch + head * context_head,
            current_value + batch * current_batch + head * current_head,
        )
        stride = tl.where(from_context, context_token, current_token)
    values = tl.load(base + matrix_offsets(tokens, dims, stride), mask=exist[:, None] & real[None, :], other=0.0)
    mean += tl.sum(values.to(tl.float32), 0) / tl.maximum(tl.sum(exist.to(tl.float32), 0), 1.0)
    tl.store(value_out + target, mean.to(value_out.dtype.element_ty), mask=real)


def means_arguments(
    context_value: Tensor, current_value: Tensor, layout: Layout, *, pooled: bool
) -> tuple[tuple[int], list[Any], dict[str, Any]]:
    """Grid, sizes and options of the launch; any tensor stands in for context values where there is no context."""
    batch, heads, _, head_dim = current_value.shape
    strides = [tensor.stride(i) for tensor in (context_value, current_value) for i in range(3)]
    sizes = [
        *strides, heads, batch * heads, layout.context_blocks, layout.key_blocks, *layout.frames, layout.height,
        layout.width, layout.blocks_high, layout.blocks_wide,
    ]  # fmt: skip
    options = {
        "T": layout.tile[0], "H": layout.tile[1], "W": layout.tile[2],
        "SLOTS": triton.next_power_of_2(volume(layout.tile)),
        "HEAD_DIM": head_dim, "DIM": triton.next_power_of_2(head_dim), "POOLED": pooled, "num_warps": 2,
    }  # fmt: skip
    return (int(layout.key_blocks) * batch * heads,), sizes, options
