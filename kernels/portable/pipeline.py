"""Sparse attention of one set of shapes and strides as bound launches: what a call is left with on the host.

Pool, score, select and attend are four launches, and one more where means stand for skipped blocks; their intermediate
values share one allocation. How much, where, and with which sizes is worked out once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..launching import ALIGNMENT, Launch
from ..skipped import Means
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


class Attend(Protocol):
    """The last launch, bound to its sizes."""

    def __call__(
        self, query: Tensor, output: Tensor, keys: Spans, values: Spans, index: Any, count: Any, means: Means | None
    ) -> None:
        """Fill ``output``; ``index``, ``count`` and offsets are tensors or, once :attr:`direct`, addresses."""

    @property
    def direct(self) -> bool:
        """Whether lists may be given as addresses."""


class _Piece(NamedTuple):
    """Where an intermediate value lies in the shared allocation."""

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
        skipped_means: bool,
    ) -> None:
        batch, heads, _, head_dim = query.shape
        key_heads = keys.current.shape[1]
        self._device = query.device.index if query.is_cuda else None
        self._with_context = bool(layout.frames[0]) and pools.key is None
        visual, frames = self._visual(query, keys), [layout.frames[1]] * 2
        if self._with_context:
            frames.insert(1, layout.frames[0])
        choice = policy_numbers(layout, **{name: value for name, value in policy.items() if name != "scale"})
        plane, width = (layout.height, layout.width, layout.tile), choice[3]
        self._pool = Launch(pool_kernel, *pool_arguments(visual, frames, *plane))
        self._score = Launch(score_kernel, *score_arguments(batch, heads, key_heads, head_dim, layout, policy["scale"]))
        self._select = Launch(
            select_kernel, *select_arguments(batch, heads, layout, *choice, offsets=skipped_means)
        )
        self._means = _means_launch(values, layout, pools) if skipped_means else None
        tiles = zip(visual, tiles_of(frames, *plane), strict=True)
        rows = (batch, heads, layout.query_tiles)
        shapes: list[tuple[tuple[int, ...], torch.dtype]] = [
            *(((batch, part.shape[1], count, head_dim + 1), torch.float32) for part, count in tiles),
            ((*rows, layout.key_blocks), torch.float32), ((*rows, width), torch.int32), (rows, torch.int32),
        ]  # fmt: skip
        if skipped_means:
            shapes += [((batch, key_heads, layout.key_blocks, head_dim), query.dtype)] * 2
        self._pieces, self._bytes = _packed(shapes)
        self._attend = attend(query, empty_output(query), keys, values, layout, width, policy["scale"], skipped_means)

    def __call__(self, query: Tensor, keys: Spans, values: Spans, pools: ContextPools) -> Tensor | None:
        """The attention output for tensors like those that were bound; None when their memory is not aligned."""
        if not _aligned(query, keys, values, pools):
            return None
        if self._device is None or torch.cuda.current_device() == self._device:
            return self._run(query, keys, values, pools)
        with torch.cuda.device(self._device):
            return self._run(query, keys, values, pools)

    def _run(self, query: Tensor, keys: Spans, values: Spans, given: ContextPools) -> Tensor:
        output = empty_output(query)
        scratch = torch.empty(self._bytes, dtype=torch.uint8, device=query.device)
        pieces = self._pieces
        visual = self._visual(query, keys)
        *pools, scores, index, count = self._places(scratch, pieces[: len(visual) + 3])
        self._pool(*thrice(visual), *thrice(pools))
        context = pools[-2] if given.key is None else given.key
        self._score(pools[0], context, pools[-1], scores)
        self._select(scores, index, count)
        means = None
        if self._means is not None:
            key, value = (piece.view(scratch) for piece in pieces[-2:])
            self._means(context, pools[-1], _context_value(values, given), values.current, key, value)
            means = Means(key, value, scores)
        self._attend(query, output, keys, values, index, count, means)
        return output

    def _visual(self, query: Tensor, keys: Spans) -> list[Tensor]:
        return [query, keys.context, keys.current] if self._with_context else [query, keys.current]

    def _places(self, scratch: Tensor, pieces: Sequence[_Piece]) -> list[Any]:
        """Addresses of intermediate values; tensors as long as a launch still has to be compiled."""
        if self._attend.direct and self._select.direct:
            base = scratch.data_ptr()
            return [base + piece.start for piece in pieces]
        return [piece.view(scratch) for piece in pieces]


def _means_launch(values: Spans, layout: Layout, pools: ContextPools) -> Launch:
    pooled = pools.value is not None and bool(layout.frames[0])
    return Launch(
        means_kernel, *means_arguments(_context_value(values, pools), values.current, layout, pooled=pooled)
    )


def _context_value(values: Spans, pools: ContextPools) -> Tensor:
    """What the context's values are averaged from; the current ones stand in where there are none."""
    if not values.context.shape[2]:
        return values.current
    return values.context if pools.value is None else pools.value


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


def _aligned(query: Tensor, keys: Spans, values: Spans, pools: ContextPools) -> bool:
    """Whether all memory starts where the launches were compiled for."""
    found = query.data_ptr()
    for span in (*keys, *values, *pools):
        if span is not None:
            found |= span.data_ptr()
    return found % ALIGNMENT == 0


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
        means: bool,
    ) -> None:
        spans = [*_present(keys), *_present(values)]
        arguments = attention_arguments(query, output, spans, layout, width, scale, means=means)
        self._launch = Launch(attention_kernel, *arguments)

    @property
    def direct(self) -> bool:
        """See :class:`Attend`."""
        return self._launch.direct

    def __call__(
        self, query: Tensor, output: Tensor, keys: Spans, values: Spans, index: Any, count: Any, means: Means | None
    ) -> None:
        """See :class:`Attend`."""
        stand_ins = (query, query, query) if means is None else means
        self._launch(query, output, *_present(keys), *_present(values), index, count, *stand_ins)


def _present(spans: Spans) -> list[Tensor]:
    """The three spans; the current one stands in for what has no tokens."""
    return [span if span.shape[2] else spans.current for span in spans]


def bind(
    query: Tensor,
    keys: Spans,
    values: Spans,
    layout: Layout,
    policy: dict[str, Any],
    *,
    pools: ContextPools,
    skipped_means: bool,
) -> Pipeline | None:
    """The bound launches of such calls with portable attention; None where they cannot be bound."""
    if not fits(query, keys, values, layout):
        return None
    return Pipeline(query, keys, values, layout, policy, PortableAttend, pools=pools, skipped_means=skipped_means)
