"""Keys and values of a site as the segments that the operators take: text first, then frames, nothing joined again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.attention_sites import AttentionSite, SpanKind
from lightint_compile.passes.analysis.token_axis import TokenAxis
from lightint_compile.passes.ir.fake_values import Size, size_of
from lightint_compile.passes.ir.joins import Piece
from lightint_compile.passes.ir.rewriter import Rewriter
from lightint_compile.passes.ir.size_nodes import SizeArgument
from lightint_compile.passes.ir.sizes import same
from lightint_compile.passes.sparse_attention.grid_sizes import (
    END,
    difference_of,
    laid_out,
    length_of,
    range_of,
    sum_of,
)
from lightint_compile.passes.sparse_attention.key_mask import KeyMask
from lightint_compile.passes.sparse_attention.sample_rows import SampleMask

aten = torch.ops.aten


@dataclass(frozen=True)
class Segments:
    """Keys and values in the operator's order.

    Attributes:
        keys, values: ``[batch, heads, tokens, head_dim]`` each.
        places: for every segment its number among those of the site's own key axis.
    """

    keys: list[fx.Node]
    values: list[fx.Node]
    places: list[int]

    @classmethod
    def of(cls, site: AttentionSite, visual: SizeArgument, rewriter: Rewriter) -> Segments:
        """What was concatenated, or one tensor, cut where text lies behind its ``visual`` tokens."""
        pairs = list(zip(site.key_pieces, site.value_pieces, strict=False))
        aligned = len(site.key_pieces) == len(site.value_pieces) and all(same(k.length, v.length) for k, v in pairs)
        order = _text_first(site) if aligned else None
        if order is not None:
            keys, values = ([laid_out(pair[side], rewriter) for pair in pairs] for side in (0, 1))
            return cls([keys[place] for place in order], [values[place] for place in order], order)
        if same(site.key_axis.suffix, 0):
            return cls([site.key], [site.value], [0])
        start = _start(site, visual, rewriter)
        end = visual if start == 0 else sum_of([start, visual], rewriter)
        behind: list[tuple[SizeArgument, SizeArgument]] = [(end, END)]
        ranges = [*behind, (start, end)] if start == 0 else [(0, start), *behind, (start, end)]
        keys, values = ([range_of(node, *at, rewriter) for at in ranges] for node in (site.key, site.value))
        return cls(keys, values, [1, 0] if start == 0 else [0, 2, 1])

    @property
    def lengths(self) -> tuple[Size, ...]:
        """Tokens of every segment of the site's own key axis, in its order."""
        by_place = sorted(zip(self.places, self.keys, strict=True), key=lambda pair: pair[0])
        return tuple(size_of(key.meta["val"].shape[2]) for _, key in by_place)

    def reordered(self, row: fx.Node, rewriter: Rewriter) -> fx.Node:
        """A row of the site's own keys, ``[batch, keys]``, in the order of the segments."""
        if self.places == sorted(self.places):
            return row
        lengths = [length_of(self.keys[self.places.index(place)], 2, rewriter) for place in range(len(self.places))]
        starts: list[SizeArgument] = [0]
        for length in lengths:
            starts.append(sum_of([starts[-1], length], rewriter))
        parts = [rewriter.call(aten.slice.Tensor, row, 1, starts[place], starts[place + 1]) for place in self.places]
        return rewriter.call(aten.cat.default, parts, 1)


class MaskRows:
    """Rows of masks in the order of segments, made once for all sites that share them."""

    def __init__(self) -> None:
        self._made: dict[Any, fx.Node] = {}

    def of(self, mask: KeyMask | SampleMask, segments: Segments, rewriter: Rewriter) -> fx.Node:
        """``[batch or 1, keys]``, for a new node; sites are rewritten in order, so a later one may read it."""
        key = mask, tuple(segments.places), segments.lengths
        if key not in self._made:
            self._made[key] = segments.reordered(mask.key_row(rewriter), rewriter)
        return self._made[key]


def is_told_apart(axis: TokenAxis) -> bool:
    """Whether text and frames can be cut apart: text on one side, or on both and a number of tokens on one of them."""
    return any(isinstance(side, int) for side in (axis.prefix, axis.suffix))


def _start(site: AttentionSite, visual: SizeArgument, rewriter: Rewriter) -> SizeArgument:
    """Where frames begin, in front of text that is behind them."""
    axis = site.key_axis
    if isinstance(axis.prefix, int):
        return axis.prefix
    behind = sum_of([visual, int(axis.suffix)], rewriter)
    return difference_of(length_of(site.key, 2, rewriter), behind, rewriter)


def _text_first(site: AttentionSite) -> list[int] | None:
    """The order of the pieces that puts text in front; ``None`` when a piece that must move holds text and grid."""
    if len(site.key_pieces) == 1:
        return [0] if same(site.key_axis.suffix, 0) else None
    if same(site.key_axis.suffix, 0):
        return list(range(len(site.key_pieces)))
    kinds = _piece_kinds(site.key_pieces, site)
    if kinds is None:
        return None
    return sorted(range(len(kinds)), key=lambda place: kinds[place] != SpanKind.TEXT)


def _piece_kinds(pieces: Sequence[Piece], site: AttentionSite) -> list[SpanKind] | None:
    """The kind of each piece, where its end is the end of a span."""
    kinds: list[SpanKind] = []
    spans = list(site.key_spans)
    for piece in pieces:
        length: Size = 0
        seen: set[bool] = set()
        while spans and not same(length, piece.length):
            span = spans.pop(0)
            seen.add(span.kind is SpanKind.TEXT)
            length = size_of(length + span.length)
        if len(seen) != 1 or not same(length, piece.length):
            return None
        kinds.append(SpanKind.TEXT if True in seen else SpanKind.CURRENT)
    return kinds
