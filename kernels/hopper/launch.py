"""Host side of the sm_90 kernel: what it takes, the tensor descriptors, one launch.

A descriptor has five axes ``(outer, frames, height, width, inner)``. Heads are folded into one of its ends: into
``inner`` where a token's heads lie side by side (the layout of a projection), into ``outer`` where heads lie apart.
So no layout is copied, except one that neither folding can express.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ..spans import Spans, as_output, empty_output
from ..tiles import Layout, ceil_div, volume
from .attention import block_sparse_attention

TILE_SLOTS = 128
HEAD_DIMS = (64, 96, 128)
STAGES = {64: 3, 96: 2, 128: 2}
"""Buffers for K and for V each, by head_dim; what fits beside Q in the 227 KiB of shared memory with room to spare."""

_ALIGNMENT = 16
_REGISTERS = 168


def supported(query: Tensor, tile: tuple[int, ...]) -> str | None:
    """Why this kernel cannot run for such a query (``[batch, heads, tokens, head_dim]``) and tile; None if it can."""
    if not triton.__version__.startswith("3.6"):
        return f"the sm_90 kernel is written for Triton 3.6, this is {triton.__version__}"
    if not query.is_cuda or torch.cuda.get_device_capability(query.device) != (9, 0):
        return "the sm_90 kernel needs a device of compute capability 9.0"
    if query.dtype not in (torch.bfloat16, torch.float16) or query.shape[3] not in HEAD_DIMS:
        return f"the sm_90 kernel takes bfloat16 or float16 of head_dim {HEAD_DIMS}"
    if volume(tile) != TILE_SLOTS or tile[0] % 2 or any(extent & (extent - 1) for extent in tile):
        return f"the sm_90 kernel takes tiles of {TILE_SLOTS} slots, powers of two, an even number of frames"
    return None


def attend(
    query: Tensor, keys: Spans, values: Spans, index: Tensor, count: Tensor, layout: Layout, scale: float
) -> Tensor:
    """Attention over the prefix and the listed blocks; same contract as ``reference.attend``."""
    if query.numel() == 0:
        return empty_output(query)
    if scale <= 0:
        # The kernel takes the maximum of unscaled scores, so the sign goes into the query.
        query, scale = (-query, -scale) if scale else (torch.zeros_like(query), 1.0)
    job = _Job(layout, query.shape[1], keys.current.shape[1], query.shape[3])
    output = empty_output(query)
    if not job.expressible(output):
        output = query.new_empty(query.shape)
    tensors = job.descriptors(query, output, keys, values)
    grid = (layout.query_tiles, query.shape[0] * query.shape[1])
    with torch.cuda.device(query.device):
        block_sparse_attention[grid](
            *tensors, index, count, scale * math.log2(math.e), query.shape[1], keys.current.shape[1], index.shape[3],
            job.places, *job.extents(), HEAD_DIM=query.shape[3],
            BT=layout.tile[0], BH=layout.tile[1], BW=layout.tile[2], STAGES=STAGES[query.shape[3]],
            EXACT=query.dtype == torch.float16,
            num_warps=4, maxnreg=_REGISTERS,
        )  # fmt: skip
    return as_output(output, query)


class _Job:
    """One launch: the descriptors, and a bit for each of them that says where its heads lie."""

    def __init__(self, layout: Layout, heads: int, key_heads: int, head_dim: int) -> None:
        self.layout, self.heads, self.key_heads, self.head_dim = layout, heads, key_heads, head_dim
        self.box = triton.next_power_of_2(head_dim)
        self.places = 0
        self.made = 0

    def descriptors(self, query: Tensor, output: Tensor, keys: Spans, values: Spans) -> list[TensorDescriptor]:
        """Query, output, then key and value of prefix, context and current; absent spans borrow the current one."""
        frames, height, width = self.layout.tile
        half, whole = (frames // 2, height, width), (frames, height, width)
        current = self.layout.current_grid
        made = [self._grid(query, current, half), self._grid(output, current, half)]
        made += [self._rows(pair.prefix if self.layout.prefix else pair.current) for pair in (keys, values)]
        if self.layout.frames[0]:
            made += [self._grid(pair.context, self.layout.context_grid, whole) for pair in (keys, values)]
        else:
            made += [self._grid(pair.current, current, whole) for pair in (keys, values)]
        return made + [self._grid(pair.current, current, whole) for pair in (keys, values)]

    def extents(self) -> tuple[int, ...]:
        """The integers that place a block, in the kernel's order."""
        grid = self.layout
        return (
            grid.prefix, ceil_div(grid.prefix, TILE_SLOTS), grid.context_blocks, grid.context_rows, *grid.frames,
            grid.height, grid.width, grid.blocks_high, grid.blocks_wide,
        )  # fmt: skip

    def _grid(self, tensor: Tensor, grid: tuple[int, int, int], box: tuple[int, int, int]) -> TensorDescriptor:
        tensor, outer, inner = self._folded(tensor)
        row = tensor.stride(2)
        shape = [outer[0], *grid, inner]
        strides = [outer[1], grid[1] * grid[2] * row, grid[2] * row, row, 1]
        return TensorDescriptor(tensor, shape, strides, [1, *box, self.box], _shared(5))

    def _rows(self, tensor: Tensor) -> TensorDescriptor:
        tensor, outer, inner = self._folded(tensor)
        shape, strides = [outer[0], tensor.shape[2], inner], [outer[1], tensor.stride(2), 1]
        return TensorDescriptor(tensor, shape, strides, [1, TILE_SLOTS, self.box], _shared(3))

    def _folded(self, tensor: Tensor) -> tuple[Tensor, tuple[int, int], int]:
        """The tensor (copied if it must be), ``(size, stride)`` of the outer axis, size of the inner one."""
        batch, heads, _, dim = tensor.shape
        if not self.expressible(tensor):
            tensor = tensor.contiguous()
        inside, batched = self._inside(tensor), batch > 1 and tensor.stride(0) != 0
        self._note(inside, batched)
        batches = batch if batched else 1
        if inside:
            return tensor, (batches, tensor.stride(0 if batched else 2)), heads * dim
        return tensor, (batches * heads, tensor.stride(1 if heads > 1 else 0) or tensor.stride(2)), dim

    def expressible(self, tensor: Tensor) -> bool:
        """Whether descriptors can read the tensor where it lies."""
        strides = [stride * tensor.element_size() for stride in tensor.stride()[:3]]
        if tensor.stride(3) != 1 or tensor.data_ptr() % _ALIGNMENT or any(stride % _ALIGNMENT for stride in strides):
            return False
        batched, heads = tensor.shape[0] > 1 and tensor.stride(0) != 0, tensor.shape[1]
        return self._inside(tensor) or not batched or heads == 1 or tensor.stride(0) == heads * tensor.stride(1)

    def _inside(self, tensor: Tensor) -> bool:
        return tensor.shape[1] > 1 and tensor.stride(1) == tensor.shape[3] == self.box

    def _note(self, inside: bool, batched: bool) -> None:
        self.places |= (int(inside) | int(batched) << 8) << self.made
        self.made += 1


@functools.cache
def _shared(rank: int) -> Any:
    return gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=rank)
