"""Block-sparse attention on the CPU: kept tiles are gathered per query tile and attended in batches of equal count.

Skipped blocks cost nothing; rows of one batch share their length, so that one SDPA call uses all cores.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import pool_spans, select_blocks
from .spans import Spans, as_output, from_tiles, to_tiles
from .tiles import Layout, key_token_map

__all__ = ["attend", "pool_spans", "select_blocks"]

_GATHER_BYTES = 8 << 20
"""Bytes of gathered keys and values of one batch: what stays in the last-level cache of a small machine."""


def attend(
    query: Tensor, keys: Spans, values: Spans, index: Tensor, count: Tensor, layout: Layout, scale: float
) -> Tensor:
    """Same contract as :func:`reference.attend`."""
    rows = to_tiles(query, layout.current_grid, layout.tile).flatten(0, 2)
    job = _Job(query, keys, values, layout, scale)
    result = torch.zeros_like(rows)
    for chosen, kept in _equal_rows(count.flatten(), job.row_bytes):
        if kept or layout.prefix:
            blocks = index.flatten(0, 2)[chosen, :kept].long()
            result[chosen] = job.run(rows[chosen], chosen, blocks)
    tiled = result.view(*query.shape[:2], layout.query_tiles, -1, query.shape[3])
    return as_output(from_tiles(tiled, layout.current_grid, layout.tile), query)


def _equal_rows(count: Tensor, row_bytes: int) -> Iterator[tuple[Tensor, int]]:
    """Rows of one count at a time, at most the cache's worth of gathered tiles each."""
    for kept in count.unique().tolist():
        rows = (count == kept).nonzero().flatten()
        size = max(1, _GATHER_BYTES // max(1, kept * row_bytes))
        for chosen in rows.split(size):
            yield chosen, kept


class _Job:
    """The tiled keys and values of one call, and the attention of a batch of query tiles over them."""

    def __init__(self, query: Tensor, keys: Spans, values: Spans, layout: Layout, scale: float) -> None:
        self.layout, self.scale = layout, scale
        self.groups = query.shape[1] // keys.current.shape[1]
        self.heads = keys.current.shape[1]
        self.key, self.value = _tiled(keys, layout), _tiled(values, layout)
        self.prefix = [span.prefix.flatten(0, 1) for span in (keys, values)]
        self.bias = _slot_bias(layout, query.dtype)
        self.row_bytes = 2 * self.key[0].numel() * self.key.element_size()

    def run(self, rows: Tensor, chosen: Tensor, blocks: Tensor) -> Tensor:
        """Attention of query tiles ``rows [n, slots, dim]`` (flat numbers ``chosen``) over ``blocks [n, kept]``."""
        source = chosen // self.layout.query_tiles // self.groups
        tiles = (blocks + source[:, None] * self.layout.key_blocks).flatten()
        key, value = (
            self._with_prefix(prefix, tensor.index_select(0, tiles), source)
            for prefix, tensor in zip(self.prefix, (self.key, self.value), strict=True)
        )
        mask = None if self.bias is None else self._mask(blocks)
        return F.scaled_dot_product_attention(rows[:, None], key, value, mask, scale=self.scale)[:, 0]

    def _with_prefix(self, prefix: Tensor, tiles: Tensor, source: Tensor) -> Tensor:
        gathered = tiles.view(len(source), 1, -1, tiles.shape[-1])
        return torch.cat([prefix[source, None], gathered], 2) if self.layout.prefix else gathered

    def _mask(self, blocks: Tensor) -> Tensor:
        assert self.bias is not None
        visual = self.bias[blocks].flatten(1)
        return F.pad(visual, (self.layout.prefix, 0))[:, None, None]


def _tiled(spans: Spans, layout: Layout) -> Tensor:
    """All visual tiles of all heads, ``[batch * heads * key_blocks, slots, dim]``."""
    current = to_tiles(spans.current, layout.current_grid, layout.tile)
    if layout.frames[0]:
        current = torch.cat([to_tiles(spans.context, layout.context_grid, layout.tile), current], 2)
    return current.flatten(0, 2)


def _slot_bias(layout: Layout, dtype: torch.dtype) -> Tensor | None:
    """0 for slots that exist, -inf for empty ones, ``[key_blocks, slots]``; None when every slot exists."""
    valid = key_token_map(layout)[1]
    return None if valid.all() else torch.zeros(valid.shape, dtype=dtype).masked_fill(~valid, float("-inf"))
