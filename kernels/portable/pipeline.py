"""Sparse attention of one set of shapes and strides as bound launches, so that a call does little on the host.

Pool, score, select and attend are four launches, and one more where means stand for skipped blocks; their intermediate
values share one allocation. How much, where, and with which sizes is worked out once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..launching import ALIGNMENT, Launch, current_stream
from ..spans import Spans, empty_output
from ..steps import ContextPools
from ..tiles import Layout
from .attention import attention_arguments, attention_kernel
from .means import means_arguments, means_kernel
from .pooling import pool_arguments, pool_kernel, thrice, tiles_of
from .selection import (
    MAX_BLOCKS,
    policy_numbers,
    score_arguments,
    score_kernel,
    select_arguments,
    select_kernel,
)

_PIECE_ALIGNMENT = 256


class Places(NamedTuple):
    """Query, spans (as of :meth:`Cutting.filled`), what of the context is pooled, and output: tensors or addresses."""

    query: Any
    prefix_key: Any
    context_key: Any
    current_key: Any
    prefix_value: Any
    context_value: Any
    current_value: Any
    context_key_pool: Any
    context_key_means: Any
    context_value_means: Any
    output: Any


class Attend(Protocol):
    """The last launch, bound to its sizes."""

    def __call__(
        self, stream: int | None, places: Places, index: Any, count: Any, means: tuple[Any, Any, Any] | None
    ) -> None:
        """Fill ``places.output``; with a ``stream`` (see :class:`Launch`) everything is an address, else a tensor.

        ``means`` are those of :class:`Means`: keys, values, offsets.
        """

    @property
    def ready(self) -> bool:
        """See :class:`Launch`."""


class _Piece(NamedTuple):
    """The place of an intermediate value in the shared allocation."""

    start: int
    stop: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def view(self, scratch: Tensor) -> Tensor:
        """The value as a tensor."""
        return scratch[self.start : self.stop].view(self.dtype).view(self.shape)


class Pipeline:
    """Pool, select and attend for one set of shapes, strides, dtypes and one device; holds no tensor.

    ``pools`` are examples of what of the context the caller has pooled already: float32, contiguous.
    """

    def __init__(
        self,
        query: Tensor,
        keys: Spans,
        values: Spans,
        layout: Layout,
        policy: dict[str, Any],
        attend: Callable[..., Attend],
        *,
        pools: ContextPools,
        parts: int,
    ) -> None:
        batch, heads, _, head_dim = query.shape
        key_heads = keys.current.shape[1]
        self._ordinal = query.device.index if query.is_cuda else None
        self._device = query.device
        self._with_context = bool(layout.frames[0]) and pools.key is None
        visual, frames = [query, keys.current], [layout.frames[1]] * 2
        if self._with_context:
            visual.insert(1, keys.context)
            frames.insert(1, layout.frames[0])
        choice = policy_numbers(layout, **{name: value for name, value in policy.items() if name != "scale"})
        plane, width = (layout.height, layout.width, layout.tile), choice[3]
        self._pool = Launch(pool_kernel, *pool_arguments(visual, frames, *plane))
        self._score = Launch(score_kernel, *score_arguments(batch, heads, key_heads, head_dim, layout, policy["scale"]))
        finer = layout.finer(parts) if parts else None
        self._select = Launch(select_kernel, *select_arguments(batch, heads, layout, *choice, finer=finer))
        self._pooled_means = bool(layout.frames[0]) and pools.have_means
        self._means = None if finer is None else self._means_launch(keys, values, pools, finer)
        tiles = zip(visual, tiles_of(frames, *plane), strict=True)
        rows = (batch, heads, layout.query_tiles)
        shapes: list[tuple[tuple[int, ...], torch.dtype]] = [
            *(((batch, part.shape[1], count, head_dim + 1), torch.float32) for part, count in tiles),
            ((*rows, layout.key_blocks), torch.float32), ((*rows, width), torch.int32), (rows, torch.int32),
        ]  # fmt: skip
        number = 0 if finer is None else int(finer.key_blocks)
        if number:
            shapes += [((*rows, number), torch.float32)] + [((batch, key_heads, number, head_dim), query.dtype)] * 2
        self._pieces, self._bytes = _packed(shapes)
        output = empty_output(query)
        self._output, self._dtype = (tuple(output.shape), output.stride()), query.dtype
        self._attend = attend(query, output, keys, values, layout, width, policy["scale"], number)
        means = () if self._means is None else (self._means,)
        self._launches = (self._attend, self._pool, self._score, self._select, *means)

    def __call__(self, query: Tensor, keys: Spans, values: Spans, pools: ContextPools) -> Tensor | None:
        """The attention output for tensors like those that were bound; None when their memory is not aligned."""
        given = (query, *keys, *values, *pools)
        addresses = [None if tensor is None else tensor.data_ptr() for tensor in given]
        if any(address and address % ALIGNMENT for address in addresses):
            return None
        if self._ordinal is None or torch.cuda.current_device() == self._ordinal:
            return self._run(given, addresses)
        with torch.cuda.device(self._ordinal):
            return self._run(given, addresses)

    def _run(self, given: Sequence[Tensor | None], addresses: Sequence[int | None]) -> Tensor:
        output = torch.empty_strided(*self._output, dtype=self._dtype, device=self._device)
        scratch = torch.empty(self._bytes, dtype=torch.uint8, device=self._device)
        stream = current_stream(self._ordinal, self._launches)
        if stream is None:
            self._start(None, Places._make((*given, output)), [piece.view(scratch) for piece in self._pieces])
        else:
            base = scratch.data_ptr()
            pieces = [base + piece.start for piece in self._pieces]
            self._start(stream, Places._make((*addresses, output.data_ptr())), pieces)
        return output

    def _start(self, stream: int | None, places: Places, pieces: list[Any]) -> None:
        visual = [places.query, places.context_key, places.current_key]
        if not self._with_context:
            del visual[1]
        pools, (scores, index, count, *more) = pieces[: len(visual)], pieces[len(visual) :]
        self._pool(stream, *thrice(visual), *thrice(pools))
        context = pools[-2] if places.context_key_pool is None else places.context_key_pool
        self._score(stream, pools[0], context, pools[-1], scores)
        if self._means is None:
            self._select(stream, scores, index, count, scores)
            return self._attend(stream, places, index, count, None)
        offsets, key, value = more
        self._select(stream, scores, index, count, offsets)
        given = places.context_key_means, places.context_value_means
        averaged = given if self._pooled_means else (places.context_key, places.context_value)
        self._means(stream, averaged[0], places.current_key, averaged[1], places.current_value, key, value)
        self._attend(stream, places, index, count, (key, value, offsets))

    def _means_launch(self, keys: Spans, values: Spans, pools: ContextPools, finer: Layout) -> Launch:
        given = (pools.key_means, pools.value_means) if self._pooled_means else (keys.context, values.context)
        assert given[0] is not None and given[1] is not None
        sources = given[0], keys.current, given[1], values.current
        return Launch(means_kernel, *means_arguments(sources, finer, pooled=self._pooled_means))


def _packed(wanted: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> tuple[list[_Piece], int]:
    """Pieces for values of some shapes and dtypes one after the other, and the bytes of all."""
    pieces, start = [], 0
    for shape, dtype in wanted:
        stop = start + math.prod(shape) * dtype.itemsize
        pieces.append(_Piece(start, stop, dtype, tuple(map(int, shape))))
        start = -(-stop // _PIECE_ALIGNMENT) * _PIECE_ALIGNMENT
    return pieces, start


def fits(query: Tensor, keys: Spans, values: Spans, layout: Layout) -> bool:
    """Whether such a call can be bound: adjacent dims, something to compute, lists that fit into registers."""
    return (
        query.numel() > 0
        and layout.key_blocks <= MAX_BLOCKS
        and query.shape[3] % 16 == 0
        and all(part.stride(3) == 1 for part in (query, *keys, *values))
    )


class PortableAttend:
    """The portable attention launch, bound."""

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
        arguments = attention_arguments(query, output, [*keys, *values], layout, width, scale, means=means)
        self._launch = Launch(attention_kernel, *arguments)

    @property
    def ready(self) -> bool:
        """See :class:`Attend`."""
        return self._launch.ready

    def __call__(
        self, stream: int | None, places: Places, index: Any, count: Any, means: tuple[Any, Any, Any] | None
    ) -> None:
        """See :class:`Attend`."""
        query, *spans = places[:7]
        stand_ins = means or (query, query, query)
        self._launch(stream, query, places.output, *spans, index, count, *stand_ins)


def bind(
    query: Tensor,
    keys: Spans,
    values: Spans,
    layout: Layout,
    policy: dict[str, Any],
    *,
    pools: ContextPools,
    parts: int,
) -> Pipeline | None:
    """The bound launches of such calls with portable attention; None where they cannot be bound."""
    if not fits(query, keys, values, layout):
        return None
    return Pipeline(query, keys, values, layout, policy, PortableAttend, pools=pools, parts=parts)
