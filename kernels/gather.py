"""Block-sparse attention on the CPU: kept tiles are gathered per query tile and attended in cache-sized pieces.

Skipped blocks cost nothing. Rows with equal counts run as one batch, so that one attention call uses all cores; long
lists are cut into pieces whose partial results are merged by their log-sum-exp; the prefix and the means that stand for
skipped blocks are such pieces too.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .reference import attend_all, pool_spans, select_blocks
from .skipped import Means
from .spans import Spans, as_output, from_tiles, to_tiles
from .tiles import Layout, accumulate_dtype, key_token_map

__all__ = ["attend", "attend_all", "pool_spans", "select_blocks"]

_PIECE_BYTES = 1 << 20
"""Bytes of gathered keys and values of one attention call: small enough to be read back from the second-level cache."""
_MOST_PIECES = 32
"""How much larger a call is where several cores share it: each needs rows of its own, and starting them costs time."""


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
    """Same contract as :func:`reference.attend`."""
    job = _Job(query, keys, values, layout, scale)
    if means is not None:
        job.stand_in(means)
    lists = index.flatten(0, 2).long()
    for rows, kept in _equal_rows(count.flatten(), job.piece):
        for blocks in lists[rows, :kept].split(job.piece, 1):
            job.merge(rows, blocks)
    tiled = job.result.view(*query.shape[:2], layout.query_tiles, -1, query.shape[3])
    return as_output(from_tiles(tiled, layout.current_grid, layout.tile), query)


def _equal_rows(count: Tensor, piece: int) -> Iterator[tuple[Tensor, int]]:
    """Rows of one non-zero count at a time, as many as fill a piece."""
    for kept in count.unique().tolist():
        if kept:
            rows = (count == kept).nonzero().flatten()
            yield from ((some, kept) for some in rows.split(max(1, piece // kept)))


def _piece_bytes(threads: int) -> int:
    return _PIECE_BYTES if threads == 1 else _PIECE_BYTES * min(4 * threads, _MOST_PIECES)


class _Job:
    """One call: its tiled tensors and the running result of every query tile.

    Attributes:
        result: ``[rows, slots, head_dim]``, attention over the keys seen so far; a row is one query tile of one head.
        mass: ``[rows, slots]``, log-sum-exp of the logits seen so far; -inf before the first.
        piece: tiles gathered for one attention call.
    """

    def __init__(self, query: Tensor, keys: Spans, values: Spans, layout: Layout, scale: float) -> None:
        self.layout, self.scale = layout, scale
        self.groups = query.shape[1] // keys.current.shape[1]
        self.query = to_tiles(query, layout.current_grid, layout.tile).flatten(0, 2)
        self.key, self.value = _tiled(keys, layout), _tiled(values, layout)
        self.bias = _slot_bias(layout, query.dtype)
        tile_bytes = 2 * self.key[0].numel() * self.key.element_size()
        self.piece = max(1, _piece_bytes(torch.get_num_threads()) // tile_bytes)
        self.result, self.mass = self._start(query, keys.prefix, values.prefix)

    def _start(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        dtype = accumulate_dtype(query.dtype)
        if key.shape[2] == 0:
            mass = torch.full(self.query.shape[:2], float("-inf"), dtype=dtype)
            return torch.zeros_like(self.query, dtype=dtype), mass
        key, value = (part.repeat_interleave(self.groups, 1) for part in (key, value))
        tiled = self.query.reshape(query.shape[0], query.shape[1], -1, query.shape[3])
        result, mass = _attention(tiled, key, value, None, self.scale)
        return result.reshape(self.query.shape).to(dtype), mass.reshape(self.query.shape[:2]).to(dtype)

    def merge(self, rows: Tensor, blocks: Tensor) -> None:
        """Let query tiles ``rows [n]`` attend to ``blocks [n, kept]`` as well."""
        source = rows // self.layout.query_tiles // self.groups
        tiles = (blocks + source[:, None] * self.layout.key_blocks).flatten()
        key, value = (
            tensor.index_select(0, tiles).view(len(rows), 1, -1, tensor.shape[-1]) for tensor in (self.key, self.value)
        )
        bias = None if self.bias is None else self.bias[blocks].flatten(1)[:, None, None]
        self._add(rows, key, value, bias)

    def stand_in(self, means: Means) -> None:
        """Let every query tile attend to the means of blocks that it does not read; some read every block."""
        offsets, width = means.offsets.flatten(0, 2), 8 * self.piece
        source = torch.arange(len(offsets)) // self.layout.query_tiles // self.groups
        key, value = means.key.flatten(0, 1), means.value.flatten(0, 1)
        for rows in torch.isfinite(offsets).any(-1).nonzero().flatten().split(width):
            bias = offsets[rows, None, None].to(key.dtype)
            self._add(rows, key[source[rows], None], value[source[rows], None], bias)

    def _add(self, rows: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> None:
        part, mass = (t[:, 0] for t in _attention(self.query[rows, None], key, value, bias, self.scale))
        mass = mass.to(self.mass.dtype)
        total = torch.logaddexp(self.mass[rows], mass)
        before = (self.mass[rows] - total).exp_()[..., None]
        self.result[rows] = self.result[rows] * before + part * (mass - total).exp_()[..., None]
        self.mass[rows] = total


def _attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp ``[batch, heads, queries]``; the operator behind SDPA on the CPU."""
    result, mass = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, False, attn_mask=bias, scale=scale
    )
    return result, mass


def _tiled(spans: Spans, layout: Layout) -> Tensor:
    """All visual tiles of all heads, ``[batch * heads * key_blocks, slots, head_dim]``."""
    current = to_tiles(spans.current, layout.current_grid, layout.tile)
    if layout.frames[0]:
        current = torch.cat([to_tiles(spans.context, layout.context_grid, layout.tile), current], 2)
    return current.flatten(0, 2)


def _slot_bias(layout: Layout, dtype: torch.dtype) -> Tensor | None:
    """0 for slots that exist, -inf for empty ones, ``[key_blocks, slots]``; None when every slot exists."""
    valid = key_token_map(layout)[1]
    return None if valid.all() else torch.zeros(valid.shape, dtype=dtype).masked_fill(~valid, float("-inf"))
