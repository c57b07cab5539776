"""Sparse attention of one set of shapes and strides as bound launches: what a call is left with on the host.

Pool, score, select and attend are four launches; their intermediate values share one allocation. How much, where, and
with which sizes is worked out once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..launching import ALIGNMENT, Launch
from ..spans import Spans, empty_output
from ..tiles import Layout
from .attention import attention_arguments, attention_kernel
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

    def __call__(self, query: Tensor, output: Tensor, keys: Spans, values: Spans, index: Any, count: Any) -> None:
        """Fill ``output``; ``index`` and ``count`` are tensors or, once :attr:`direct`, addresses."""

    @property
    def direct(self) -> bool:
        """Whether lists may be given as addresses."""


class _Piece(NamedTuple):
    """Where an intermediate value lies in the shared allocation."""

    start: int
    stop: int
    dtype: torch.dtype


class Pipeline:
    """Pool, select and attend for one set of shapes, strides, dtypes and one device; holds no tensor.

    ``prepared`` stands for pooled context keys that the caller has already: float32, contiguous.
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
        prepared: bool = False,
    ) -> None:
        batch, heads, _, head_dim = query.shape
        key_heads = keys.current.shape[1]
        self._device = query.device.index if query.is_cuda else None
        self._with_context = bool(layout.frames[0]) and not prepared
        visual, frames = self._visual(query, keys), [layout.frames[1]] * 2
        if self._with_context:
            frames.insert(1, layout.frames[0])
        protected, neighbours, budget, width, coverage = policy_numbers(
            layout, policy["density"], policy["coverage"], policy["protect_frames"], policy["neighbours"]
        )
        plane = (layout.height, layout.width, layout.tile)
        self._pool = Launch(pool_kernel, *pool_arguments(visual, frames, *plane))
        self._score = Launch(score_kernel, *score_arguments(batch, heads, key_heads, head_dim, layout, policy["scale"]))
        choice = (protected, neighbours, budget, width, coverage)
        self._select = Launch(select_kernel, *select_arguments(batch, heads, layout, *choice))
        self._attend = attend(query, empty_output(query), keys, values, layout, width, policy["scale"])
        rows = batch * heads * layout.query_tiles
        pools = [part.shape[1] * batch * tiles * head_dim for part, tiles in zip(visual, tiles_of(frames, *plane), strict=True)]  # fmt: skip  # noqa: E501
        floats, integers = [*pools, rows * layout.key_blocks], [rows * width, rows]
        self._pieces, self._bytes = _packed([(n, torch.float32) for n in floats] + [(n, torch.int32) for n in integers])
        self._lists = (batch, heads, layout.query_tiles)

    def __call__(self, query: Tensor, keys: Spans, values: Spans, context_pool: Tensor | None = None) -> Tensor | None:
        """The attention output for tensors like those that were bound; None when their memory is not aligned."""
        if not _aligned(query, keys, values, context_pool):
            return None
        if self._device is None or torch.cuda.current_device() == self._device:
            return self._run(query, keys, values, context_pool)
        with torch.cuda.device(self._device):
            return self._run(query, keys, values, context_pool)

    def _run(self, query: Tensor, keys: Spans, values: Spans, context_pool: Tensor | None) -> Tensor:
        output = empty_output(query)
        scratch = torch.empty(self._bytes, dtype=torch.uint8, device=query.device)
        *pools, scores, index, count = self._places(scratch)
        self._pool(*thrice(self._visual(query, keys)), *thrice(pools))
        context = pools[-2] if context_pool is None else context_pool
        self._score(pools[0], context, pools[-1], scores)
        self._select(scores, index, count)
        self._attend(query, output, keys, values, index, count)
        return output

    def _visual(self, query: Tensor, keys: Spans) -> list[Tensor]:
        return [query, keys.context, keys.current] if self._with_context else [query, keys.current]

    def _places(self, scratch: Tensor) -> list[Any]:
        """Addresses of the intermediate values; tensors as long as a launch still has to be compiled."""
        if self._attend.direct and self._select.direct:
            base = scratch.data_ptr()
            return [base + piece.start for piece in self._pieces]
        *floats, index, count = (scratch[start:stop].view(dtype) for start, stop, dtype in self._pieces)
        return [*floats, index.view(*self._lists, -1), count.view(self._lists)]


def _packed(wanted: list[tuple[int, torch.dtype]]) -> tuple[list[_Piece], int]:
    """Pieces for numbers of elements one after the other, and the bytes of all."""
    pieces, start = [], 0
    for elements, dtype in wanted:
        stop = start + elements * dtype.itemsize
        pieces.append(_Piece(start, stop, dtype))
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


def _aligned(query: Tensor, keys: Spans, values: Spans, context_pool: Tensor | None) -> bool:
    """Whether all memory starts where the launches were compiled for."""
    found = query.data_ptr() if context_pool is None else query.data_ptr() | context_pool.data_ptr()
    for span in (*keys, *values):
        found |= span.data_ptr()
    return found % ALIGNMENT == 0


class PortableAttend:
    """The portable attention launch, bound."""

    def __init__(
        self, query: Tensor, output: Tensor, keys: Spans, values: Spans, layout: Layout, width: int, scale: float
    ) -> None:
        spans = [*_present(keys), *_present(values)]
        self._launch = Launch(attention_kernel, *attention_arguments(query, output, spans, layout, width, scale))

    @property
    def direct(self) -> bool:
        """See :class:`Attend`."""
        return self._launch.direct

    def __call__(self, query: Tensor, output: Tensor, keys: Spans, values: Spans, index: Any, count: Any) -> None:
        """See :class:`Attend`."""
        self._launch(query, output, *_present(keys), *_present(values), index, count)


def _present(spans: Spans) -> list[Tensor]:
    """The three spans; the current one stands in for what has no tokens."""
    return [span if span.shape[2] else spans.current for span in spans]


def bind(
    query: Tensor, keys: Spans, values: Spans, layout: Layout, policy: dict[str, Any], *, prepared: bool
) -> Pipeline | None:
    """The bound launches of such calls with portable attention; None where they cannot be bound."""
    if not fits(query, keys, values, layout):
        return None
    return Pipeline(query, keys, values, layout, policy, PortableAttend, prepared=prepared)
