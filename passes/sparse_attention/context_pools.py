"""Context that several sites read is pooled once: the graph then holds its pools as values beside keys and values.

The denoising loop arrives unrolled, so the steps of one block read one and the same context tensor. Which of its tiles
a step reads depends on the means of their keys, what the others are replaced by on the means of keys and values, and
these depend on the context alone: they are computed once a chunk, outside of what the steps repeat.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
import torch.fx as fx

from lightint_compile.kernels import ops as _ops  # noqa: F401 - registers the operators
from lightint_compile.kernels.tiles import part_of
from lightint_compile.passes.analysis.attention_sites import AttentionSite, SpanKind
from lightint_compile.passes.analysis.token_axis import Grid
from lightint_compile.passes.ir.fake_values import size_of
from lightint_compile.passes.ir.joins import Piece
from lightint_compile.passes.ir.rewriter import Rewriter
from lightint_compile.passes.ir.size_nodes import SizeArgument
from lightint_compile.passes.ir.sizes import same
from lightint_compile.passes.sparse_attention.grid_sizes import (
    END,
    GridSizes,
    difference_of,
    laid_out,
    length_of,
    product_of,
    range_of,
)

_Key = tuple[fx.Node, tuple[tuple[int, ...], ...], tuple[int, ...]]


class ContextPools:
    """Pools of context tokens, one for each tensor and tile that at least two of the sites share."""

    def __init__(self, sites: Iterable[tuple[AttentionSite, tuple[int, ...]]]) -> None:
        keys = (_key(piece, tile) for site, tile in sites if (piece := context_piece(site)) is not None)
        self._readers = Counter(keys)
        self._made: dict[_Key, fx.Node] = {}

    def readers(self, site: AttentionSite, tile: tuple[int, ...]) -> int:
        """How many sites read the pool that this one would; 0 when its context is not a separate tensor."""
        piece = context_piece(site)
        return 0 if piece is None else self._readers[_key(piece, tile)]

    def of(
        self, site: AttentionSite, tile: tuple[int, int, int], sizes: GridSizes, rewriter: Rewriter, *, parts: int
    ) -> list[fx.Node] | None:
        """Nodes with the pooled context keys of a site and, where ``parts`` of a tile have means, those means.

        They stand where the first of their readers does. Where values are not a separate tensor, the operator computes
        the means.
        """
        piece = context_piece(site)
        if piece is None or self._readers[_key(piece, tile)] < 2:
            return None
        wanted = [(piece, tile)]
        value = context_value(site, piece) if parts else None
        if value is not None:
            finer = part_of(tile, parts)
            wanted += [(piece, finer), (value, finer)]
        return [self._pool(part, site, of, sizes, rewriter) for part, of in wanted]

    def _pool(
        self, piece: Piece, site: AttentionSite, tile: tuple[int, ...], sizes: GridSizes, rewriter: Rewriter
    ) -> fx.Node:
        key = _key(piece, tile)
        if key not in self._made:  # sites are rewritten in order: a later one may read an earlier one's node
            grids, plane = _context(site), sizes.plane(site.query_axis.grids, rewriter)
            frames = sizes.frames(grids, plane, rewriter)
            tokens = laid_out(piece, rewriter)
            if any(map(sizes.is_counted, grids)):
                tokens = _of_frames(tokens, [frames, *plane], rewriter)
            target = torch.ops.lightint.pool_tiles.default
            self._made[key] = rewriter.call(target, tokens, [frames, *plane], list(tile))
        return self._made[key]


def _of_frames(tokens: fx.Node, grid: Sequence[SizeArgument], rewriter: Rewriter) -> fx.Node:
    """The last tokens, as many as the frames have: all, or none in a call whose tokens are no whole frames."""
    rest = difference_of(length_of(tokens, 2, rewriter), product_of(grid, rewriter), rewriter)
    return range_of(tokens, rest, END, rewriter)


def _key(piece: Piece, tile: tuple[int, ...]) -> _Key:
    return piece.node, piece.layout, tuple(tile)


def _context(site: AttentionSite) -> list[Grid]:
    return [span.grid for span in site.key_spans if span.kind is SpanKind.CONTEXT and span.grid is not None]


def context_piece(site: AttentionSite) -> Piece | None:
    """The operand of the concatenation that holds all context keys and nothing else."""
    spans, found = list(site.key_spans), []
    for piece in site.key_pieces:
        length, kinds = size_of(0), set()
        while spans and not same(length, piece.length):
            span = spans.pop(0)
            kinds.add(span.kind)
            length = size_of(length + span.length)
        if not same(length, piece.length):
            return None
        if SpanKind.CONTEXT in kinds:
            found.append((piece, kinds))
    if len(found) == 1 and found[0][1] == {SpanKind.CONTEXT}:
        return found[0][0]
    return None


def context_value(site: AttentionSite, key: Piece) -> Piece | None:
    """The operand of the values' concatenation at the place that ``key`` has in that of the keys."""
    if len(site.key_pieces) != len(site.value_pieces):
        return None
    value = site.value_pieces[list(site.key_pieces).index(key)]
    return value if same(value.length, key.length) else None
