"""How tensors are cut: the key axis into prefix, context and current frames, token order into tiles and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .tiles import Layout, tile_counts


class Spans(NamedTuple):
    """Keys (or values) cut at the only two places that matter; any of the first two may have no tokens.

    Each is ``[batch, key_heads, tokens, head_dim]`` with whatever strides its source had.
    """

    prefix: Tensor
    context: Tensor
    current: Tensor

    @property
    def filled(self) -> Spans:
        """The spans for kernels, which read none without tokens: the current one stands in for it."""
        prefix, context = (span if span.shape[2] else self.current for span in self[:2])
        return Spans(prefix, context, self.current)


def split_spans(segments: Sequence[Tensor], layout: Layout) -> Spans:
    """Cut a segmented key axis at the end of the prefix and of the context.

    Views wherever a span lies inside one segment, which is so for one whole tensor and for the usual
    (text, cached context, current) list; a span spread over several segments is concatenated.
    """
    return Cutting([segment.shape[2] for segment in segments], layout)(segments)


class Cutting:
    """:func:`split_spans` for segments of known lengths: the place of each span is found once."""

    def __init__(self, lengths: Sequence[int], layout: Layout) -> None:
        starts = (0, layout.prefix, layout.prefix + layout.context_tokens)
        ends = (*starts[1:], layout.key_tokens)
        self._spans = [_pieces(lengths, start, end) for start, end in zip(starts, ends, strict=True)]

    def __call__(self, segments: Sequence[Tensor]) -> Spans:
        """The spans of segments of the lengths stated."""
        prefix, context, current = (_cut(segments, pieces) for pieces in self._spans)
        return Spans(prefix, context, current)

    def filled(self, segments: Sequence[Tensor]) -> Spans:
        """:attr:`Spans.filled` of :meth:`__call__`, without a view of what has no tokens."""
        current = _cut(segments, self._spans[2])
        prefix, context = (current if pieces is _ABSENT else _cut(segments, pieces) for pieces in self._spans[:2])
        return Spans(prefix, context, current)


_Piece = tuple[int, int, int, bool]
"""A segment, the first of its tokens that belong to a span, how many do, and whether these are all it has."""

_ABSENT: list[_Piece] = [(0, 0, 0, False)]


def _pieces(lengths: Sequence[int], start: int, end: int) -> list[_Piece]:
    found, begin = [], 0
    for number, length in enumerate(lengths):
        low, high = max(start - begin, 0), min(end - begin, length)
        if low < high:
            whole = isinstance(length, int) and low == 0 and high == length  # a symbolic length would be guarded on
            found.append((number, low, high - low, bool(whole)))
        begin += length
    return found or _ABSENT


def _cut(segments: Sequence[Tensor], pieces: Sequence[_Piece]) -> Tensor:
    found = [
        segments[number] if whole else segments[number].narrow(2, low, count) for number, low, count, whole in pieces
    ]
    return found[0] if len(found) == 1 else torch.cat(found, 2)


def to_tiles(tokens: Tensor, grid: Sequence[int], tile: Sequence[int]) -> Tensor:
    """``[batch, heads, tokens, dim]`` in token order to ``[batch, heads, tiles, slots, dim]``, zeros in empty slots."""
    batch, heads, _, dim = tokens.shape
    counts = tile_counts(grid, tile)
    pads = [n * extent - size for n, extent, size in zip(counts, tile, grid, strict=True)]
    volume = tokens.reshape(batch, heads, *grid, dim)
    if any(pads):
        volume = F.pad(volume, (0, 0, 0, pads[2], 0, pads[1], 0, pads[0]))
    split = volume.reshape(batch, heads, counts[0], tile[0], counts[1], tile[1], counts[2], tile[2], dim)
    return split.permute(0, 1, 2, 4, 6, 3, 5, 7, 8).reshape(batch, heads, counts[0] * counts[1] * counts[2], -1, dim)


def from_tiles(tiles: Tensor, grid: Sequence[int], tile: Sequence[int]) -> Tensor:
    """Inverse of :func:`to_tiles`: ``[batch, heads, tokens, dim]``, empty slots dropped."""
    batch, heads, _, _, dim = tiles.shape
    counts = tile_counts(grid, tile)
    split = tiles.view(batch, heads, *counts, *tile, dim).permute(0, 1, 2, 5, 3, 6, 4, 7, 8)
    volume = split.reshape(batch, heads, *(n * extent for n, extent in zip(counts, tile, strict=True)), dim)
    return volume[:, :, : grid[0], : grid[1], : grid[2]].reshape(batch, heads, -1, dim)


def heads_last(query: Tensor) -> bool:
    """Whether the query is stored as ``[batch, tokens, heads, head_dim]``, which the output then follows."""
    return bool(query.stride(1) < query.stride(2))


def empty_output(query: Tensor) -> Tensor:
    """Uninitialised ``[batch, heads, tokens, head_dim]`` in the documented memory order."""
    if heads_last(query):
        return query.new_empty([query.shape[i] for i in (0, 2, 1, 3)]).transpose(1, 2)
    return query.new_empty(query.shape)


def as_output(result: Tensor, query: Tensor) -> Tensor:
    """``result`` in the documented memory order and dtype, copied only if it is not so already."""
    order = (0, 2, 1, 3) if heads_last(query) else (0, 1, 2, 3)
    ordered = result.to(query.dtype).permute(order).contiguous()
    return ordered.permute(order)
