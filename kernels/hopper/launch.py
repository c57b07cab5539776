"""Host side of the sm_90 kernel: what it takes, the tensor descriptors, one launch.

A descriptor has five axes ``(outer, frames, height, width, inner)``. Heads are folded into one of its ends: into
``inner`` where a token's heads lie side by side (the layout of a projection), into ``outer`` where heads lie apart.
So no layout is copied, except one that neither folding can express. How a call's tensors fold is worked out once per
set of shapes and strides.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .. import triton_compat
from ..launching import ALIGNMENT, Launch, current_stream
from ..portable.pipeline import Places
from ..skipped import Means
from ..spans import Spans, as_output, empty_output
from ..tiles import Layout, ceil_div, volume
from .attention import block_sparse_attention

TILE_SLOTS = 128
HEAD_DIMS = (64, 96, 128)
STAGES = {64: 3, 96: 2, 128: 2}
"""Buffers for K and for V each, by head_dim; what fits beside Q in the 227 KiB of shared memory with room to spare."""

_Means = tuple[Any, Any, Any]
"""Mean keys, mean values and offsets, as tensors or as addresses."""
_REGISTERS = 168
_MOST_DESCRIPTORS = 1024
_LOG2_E = math.log2(math.e)
_DEFAULTS = triton_compat.descriptor_fields(TensorDescriptor)


def supported(query: Tensor, tile: tuple[int, ...]) -> str | None:
    """Why this kernel cannot run for such a query (``[batch, heads, tokens, head_dim]``) and tile; None if it can."""
    obstacle = triton_compat.gluon_obstacle()
    if obstacle:
        return obstacle
    if not query.is_cuda or torch.cuda.get_device_capability(query.device) != (9, 0):
        return "the sm_90 kernel needs a device of compute capability 9.0"
    if query.dtype not in (torch.bfloat16, torch.float16) or query.shape[3] not in HEAD_DIMS:
        return f"the sm_90 kernel takes bfloat16 or float16 of head_dim {HEAD_DIMS}"
    if volume(tile) != TILE_SLOTS or tile[0] % 2 or any(extent & (extent - 1) for extent in tile):
        return f"the sm_90 kernel takes tiles of {TILE_SLOTS} slots, powers of two, an even number of frames"
    return None


def attend(
    query: Tensor,
    keys: Spans,
    values: Spans,
    index: Tensor,
    count: Tensor,
    layout: Layout,
    scale: float,
    means: Means | None = None,
) -> Tensor:
    """Attention over the prefix and the listed blocks; same contract as ``reference.attend``."""
    output = empty_output(query)
    if query.numel() == 0:
        return output
    if scale <= 0:
        # The kernel takes the maximum of unscaled scores, so the sign goes into the query.
        query, scale = (-query, -scale) if scale else (torch.zeros_like(query), 1.0)
    tensors = tuple(
        tensor if _expressible(tensor) else tensor.contiguous()
        for tensor in (query, output, *_interleaved(keys.filled, values.filled))
    )
    index, count = (part if part.data_ptr() % ALIGNMENT == 0 else part.clone() for part in (index, count))
    forms = tuple((tuple(tensor.shape), tensor.stride()) for tensor in tensors)
    number = 0 if means is None else means.key.shape[2]
    with torch.cuda.device(query.device):
        bound = _bound(forms, layout, index.shape[3], scale, query.dtype, query.get_device(), number)
        stream = current_stream(query.get_device(), (bound.launch,))
        if stream is None:
            bound(None, tensors, index, count, means)
        else:
            at = None if means is None else (means.key.data_ptr(), means.value.data_ptr(), means.offsets.data_ptr())
            bound(stream, [tensor.data_ptr() for tensor in tensors], index.data_ptr(), count.data_ptr(), at)
    return as_output(tensors[1], query)


class _Bound:
    """A launch, and the boxes of its descriptors: those of eight tensors, then of mean keys and values.

    Making a descriptor takes as long as a launch, and allocators give the same addresses again and again, so what a
    launch takes for a descriptor is kept by its address.
    """

    def __init__(self, launch: Launch, boxes: tuple[_Box, ...]) -> None:
        self.launch, self._boxes = launch, boxes
        self._made: dict[tuple[int, int], tuple[Any, ...]] = {}

    def __call__(
        self, stream: int | None, tensors: Sequence[Any], index: Any, count: Any, means: _Means | None
    ) -> None:
        """Fill the second of ``tensors``; with a ``stream`` everything is an address, else a tensor.

        Without means, placeholders of matching type are passed; the kernel ignores them.
        """
        *mean_pair, offsets = means or (*tensors[2:4], count)
        sources = (*tensors, *mean_pair)
        if stream is None:
            described = [_descriptor(tensor, box) for tensor, box in zip(sources, self._boxes, strict=True)]
        else:
            described = [part for place in enumerate(sources) for part in self._made.get(place) or self._make(*place)]
        self.launch(stream, *described, offsets, index, count)

    def _make(self, number: int, address: int) -> tuple[Any, ...]:
        if len(self._made) >= _MOST_DESCRIPTORS:
            self._made.clear()
        descriptor = _descriptor(_Address(address), self._boxes[number])
        made = self._made[number, address] = self.launch.described(number, descriptor)
        return made


class _Address(NamedTuple):
    """What a descriptor asks of its tensor."""

    address: int

    def data_ptr(self) -> int:
        """The address."""
        return self.address


@functools.lru_cache(maxsize=256)
def _bound(
    forms: tuple[_Form, ...],
    layout: Layout,
    list_width: int,
    scale: float,
    dtype: torch.dtype,
    device: int,
    means: int,
) -> _Bound:
    """The launch for tensors of such shapes and strides; ``device`` because compiled kernels belong to one."""
    plan = _plan(forms, layout)
    heads, head_dim = forms[0][0][1], forms[0][0][3]
    extents = (*plan.extents, means, ceil_div(means, TILE_SLOTS))
    sizes = [scale * _LOG2_E, 1.0 / scale, heads, forms[6][0][1], list_width, plan.places, *extents]
    options = {
        "HEAD_DIM": head_dim, "STAGES": STAGES[head_dim], "EXACT": dtype == torch.float16, "MEANS": means > 0,
        "num_warps": 4, "maxnreg": _REGISTERS,
    }  # fmt: skip
    boxes = (*plan.boxes, *(_mean_boxes(forms, means) if means else plan.boxes[2:4]))
    return _Bound(Launch(block_sparse_attention, plan.grid, sizes, options), boxes)


class BoundAttention:
    """The launch of one set of shapes and strides, for calls that were checked; see ``portable.pipeline.Attend``."""

    def __init__(
        self,
        query: Tensor,
        output: Tensor,
        keys: Spans,
        values: Spans,
        layout: Layout,
        width: int,
        scale: float,
        means: int,
    ) -> None:
        tensors = (query, output, *_interleaved(keys, values))
        forms = tuple((tuple(tensor.shape), tensor.stride()) for tensor in tensors)
        self._bound = _bound(forms, layout, width, scale, query.dtype, query.get_device(), means)

    @property
    def ready(self) -> bool:
        """Whether the kernel can be started on a stream."""
        return self._bound.launch.ready

    def __call__(self, stream: int | None, places: Places, index: Any, count: Any, means: _Means | None) -> None:
        """Fill the output."""
        query, *spans = places[:7]
        self._bound(stream, (query, places.output, *_interleaved(spans[:3], spans[3:])), index, count, means)


def expressible(tensor: Tensor) -> bool:
    """Whether descriptors can read tensors of such a shape and strides without a copy, given aligned memory."""
    return not tensor.shape[2] or _form_fits(tuple(tensor.shape), tensor.stride())


def _interleaved(keys: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """Key and value of prefix, context and current frames."""
    return [span for pair in zip(keys, values, strict=True) for span in pair]


class _Box(NamedTuple):
    """A descriptor without its tensor."""

    shape: list[int]
    strides: list[int]
    block: list[int]


class _Plan(NamedTuple):
    """Everything of a launch that follows from shapes, strides and the layout; ``places`` as in ``ends``."""

    grid: tuple[int, int]
    boxes: tuple[_Box, ...]
    places: int
    extents: tuple[int, ...]


_Form = tuple[tuple[int, ...], tuple[int, ...]]


@functools.lru_cache(maxsize=256)
def _plan(forms: tuple[_Form, ...], layout: Layout) -> _Plan:
    folded = [_fold(form) for form in forms]
    frames, height, width = layout.tile
    half, whole = (frames // 2, height, width), layout.tile
    current, context = layout.current_grid, layout.context_grid if layout.frames[0] else layout.current_grid
    grids = [(current, half)] * 2 + [None] * 2 + [(context, whole)] * 2 + [(current, whole)] * 2
    boxes = tuple(_box(form, fold, grid) for form, fold, grid in zip(forms, folded, grids, strict=True))
    places = sum((int(fold.inside) | int(fold.batched) << 8) << i for i, fold in enumerate(folded))
    extents = (
        layout.prefix, ceil_div(layout.prefix, TILE_SLOTS), layout.context_blocks, layout.context_rows, *layout.frames,
        layout.height, layout.width, layout.blocks_high, layout.blocks_wide,
    )  # fmt: skip
    (batch, heads, *_), _ = forms[0]
    return _Plan((layout.query_tiles, batch * heads), boxes, places, extents)


class _Fold(NamedTuple):
    """Where heads and batch went: ``inside`` the rows or not, a batch that counts or is broadcast."""

    inside: bool
    batched: bool
    outer: tuple[int, int]
    inner: int


def _fold(form: _Form) -> _Fold:
    (batch, heads, _, dim), (by_batch, by_head, by_token, _) = form
    inside, batched = _inside(form), batch > 1 and by_batch != 0
    if inside:
        return _Fold(True, batched, (batch, by_batch) if batched else (1, by_token), heads * dim)
    outer = by_head if heads > 1 else by_batch
    return _Fold(False, batched, ((batch if batched else 1) * heads, outer or by_token), dim)


def _inside(form: _Form) -> bool:
    (_, heads, _, dim), (_, by_head, _, _) = form
    return heads > 1 and by_head == dim == triton.next_power_of_2(dim)


def _box(
    form: _Form, fold: _Fold, grid: tuple[tuple[int, int, int], tuple[int, int, int]] | None
) -> _Box:  # fmt: skip
    """A box of whole tiles of a token grid, or of rows (the prefix) where there is no grid."""
    (_, _, tokens, dim), (_, _, row, _) = form
    inner = triton.next_power_of_2(dim)
    if grid is None:
        return _Box([fold.outer[0], tokens, fold.inner], [fold.outer[1], row, 1], [1, TILE_SLOTS, inner])
    extent, tile = grid
    strides = [fold.outer[1], extent[1] * extent[2] * row, extent[2] * row, row, 1]
    return _Box([fold.outer[0], *extent, fold.inner], strides, [1, *tile, inner])


def _expressible(tensor: Tensor) -> bool:
    """Whether descriptors can read the tensor without a copy."""
    return tensor.data_ptr() % ALIGNMENT == 0 and _form_fits(tuple(tensor.shape), tensor.stride())


@functools.lru_cache(maxsize=1024)
def _form_fits(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    by_batch, by_head, by_token, by_dim = strides
    # Elements are two bytes wide.
    if by_dim != 1 or any(2 * stride % ALIGNMENT for stride in (by_batch, by_head, by_token)):
        return False
    batched = shape[0] > 1 and by_batch != 0
    return _inside((shape, strides)) or not batched or shape[1] == 1 or by_batch == shape[1] * by_head


def _mean_boxes(forms: tuple[_Form, ...], means: int) -> tuple[_Box, _Box]:
    """The boxes of mean keys and values: 128 means of a head at a time."""
    (batch, key_heads, _, dim), _ = forms[6]
    block = [1, TILE_SLOTS, triton.next_power_of_2(dim)]
    return (_Box([batch * key_heads, means, dim], [means * dim, dim, 1], block),) * 2


def _descriptor(tensor: Any, box: _Box) -> TensorDescriptor:
    """A descriptor without the checks of its constructor, which cost more than the launch; the plan made them."""
    made = object.__new__(TensorDescriptor)
    made.__dict__.update(_DEFAULTS)
    made.base, made.shape, made.strides, made.block_shape = tensor, box.shape, box.strides, box.block
    made.layout = _shared(len(box.block))
    return made


@functools.cache
def _shared(rank: int) -> Any:
    return gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=rank)
