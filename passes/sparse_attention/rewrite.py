"""Writing one attention site as block-sparse attention: sizes as graph arguments, text first, no concatenation read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.fx as fx

from lightint_compile.kernels import ops as _ops  # noqa: F401 - registers the operators
from lightint_compile.kernels.dispatch import Choice as Implementation
from lightint_compile.kernels.tiles import Layout
from lightint_compile.passes.analysis.attention_sites import ATTENTION, AttentionSite
from lightint_compile.passes.analysis.token_axis import Span, TokenAxis
from lightint_compile.passes.ir.fake_values import Size, size_of
from lightint_compile.passes.ir.op_arguments import argument
from lightint_compile.passes.ir.rewriter import Rewriter
from lightint_compile.passes.ir.size_nodes import SizeArgument
from lightint_compile.passes.ir.sizes import same
from lightint_compile.passes.sparse_attention.context_pools import ContextPools
from lightint_compile.passes.sparse_attention.frame_masks import FrameMask
from lightint_compile.passes.sparse_attention.grid_sizes import (
    END,
    GridSizes,
    difference_of,
    length_of,
    product_of,
    range_of,
    sum_of,
)
from lightint_compile.passes.sparse_attention.key_mask import KeyMask
from lightint_compile.passes.sparse_attention.sample_rows import SampleMask, SampleMasks, Samples
from lightint_compile.passes.sparse_attention.segments import MaskRows, Segments

aten = torch.ops.aten


@dataclass(frozen=True)
class Choice:
    """What a site keeps.

    Attributes:
        layout: its tiles, symbolic sizes at the values seen at capture.
        density: kept fraction of all visual key blocks, the forced ones included; of the current ones where the context
            has its own density.
        context_density: that of the context's blocks.
        coverage: softmax mass at which a query tile may stop earlier.
        protect_frames: latest frames that every query keeps.
        neighbours: Manhattan radius, in tiles, that every query keeps.
        skipped_means: number of means that approximate a skipped block, 0 for none.
        min_tokens: keys from which the site is sparse, 0 where that is decided; none leaves it to each call, because a
            size is only known there.
        kernel: the implementation that runs where it is sparse.
        mask: what says which keys a query sees, where something does.
    """

    layout: Layout
    density: float
    context_density: float | None
    coverage: float | None
    protect_frames: int
    neighbours: int
    skipped_means: int
    min_tokens: int | None
    kernel: Implementation
    mask: KeyMask | FrameMask | Samples | None = None

    @property
    def decided(self) -> str:
        """Who decides between dense and sparse, and when."""
        if self.min_tokens is None:
            return "at each call, by the cost model"
        return "when compiled" if self.min_tokens <= 1 else f"at each call, sparse from {self.min_tokens} keys on"

    @property
    def kept_blocks(self) -> int:
        """Key blocks that a query tile reads at most."""
        return int(self.layout.list_width(self.density, self.protect_frames, self.neighbours, self.context_density))

    @property
    def keeps_all(self) -> bool:
        """Whether every query tile reads every key block, so that there is nothing to skip."""
        kept = (self.density, self.protect_frames, self.neighbours, self.context_density, self.coverage)
        return self.layout.keeps_all(*kept)

    @property
    def read_keys(self) -> float:
        """Keys that a query token is multiplied with: the text, tokens of kept blocks, means of all blocks."""
        if isinstance(self.mask, FrameMask):
            layouts = list(self.mask.layouts(self.layout))
            read = sum(self._read_keys(each) * each.current_tokens for each in layouts)
            return read / self.layout.current_tokens
        return self._read_keys(self.layout)

    def _read_keys(self, layout: Layout) -> float:
        kept = layout.list_width(self.density, self.protect_frames, self.neighbours, self.context_density)
        means = layout.finer(self.skipped_means).key_blocks if self.skipped_means else 0
        return float(layout.prefix + kept / layout.key_blocks * (layout.key_tokens - layout.prefix) + means)


def one_sided(axis: TokenAxis) -> bool:
    """Whether tokens without a grid are on at most one side of the grid."""
    return same(axis.prefix, 0) or same(axis.suffix, 0)


def rewrite_site(
    site: AttentionSite,
    choice: Choice,
    sizes: GridSizes,
    pools: ContextPools,
    rows: MaskRows,
    masks: SampleMasks,
    rewriter: Rewriter,
) -> fx.Node:
    """Insert the sparse form of ``site`` in front of its node and give the node with the result.

    Text queries that share the axis with the grid attend to every key, as they did: the axis is cut, and joined again.
    """
    assert site.query_grid is not None
    if isinstance(choice.mask, FrameMask):
        return _by_groups(site, choice, choice.mask, rewriter)
    query_grid = sizes.arguments(site.query_axis.grids, rewriter)
    parts = (site.context_grids, site.own_grids)
    frames = [sizes.frames(each, query_grid[1:], rewriter) for each in parts]
    key_grid = [sum_of(frames, rewriter), *query_grid[1:]]
    visual = product_of(query_grid, rewriter)
    segments = Segments.of(site, product_of(key_grid, rewriter), rewriter)
    keys, values = segments.keys, segments.values
    counted = any(map(sizes.is_counted, site.key_axis.grids))
    prefix = _prefix(site, keys, key_grid, rewriter, counted=counted)
    queries = _Queries.cut(site, visual, rewriter)
    mask = masks.of(choice.mask, queries.at) if isinstance(choice.mask, Samples) else choice.mask
    kept = (choice.density, choice.coverage, choice.protect_frames, choice.neighbours)
    policy = (*kept, _stated_scale(site), choice.context_density, choice.skipped_means)
    decided = choice.min_tokens
    where = (query_grid, key_grid, prefix, list(choice.layout.tile))
    pooled = pools.of(site, choice.layout.tile, sizes, rewriter, parts=choice.skipped_means)
    lightint = torch.ops.lightint
    if mask is not None:
        target = lightint.sparse_attention_masked.default
        row = rows.of(mask, segments, rewriter)
        given = (decided, *(pooled or ()))
        found = rewriter.call(target, queries.visual, keys, values, row, *where, *policy, *given)
        found = queries.without_blind(mask, found, rewriter)
    elif pooled is not None:
        target = lightint.sparse_attention_prepared.default
        key_pool, *means = pooled
        given = (*means, None, None)[:2]
        found = rewriter.call(target, queries.visual, keys, values, key_pool, *where, *policy, *given, decided)
    elif len(keys) > 1:
        target = lightint.sparse_attention_segments.default
        found = rewriter.call(target, queries.visual, keys, values, *where, *policy, decided)
    else:
        target = lightint.sparse_attention.default
        found = rewriter.call(target, queries.visual, keys[0], values[0], *where, *policy, decided)
    found = queries.join(site, mask, found, rewriter)
    if isinstance(choice.mask, Samples) and isinstance(mask, SampleMask):
        return choice.mask.finish(found, mask.fits, rewriter)
    return found


def _by_groups(site: AttentionSite, choice: Choice, mask: FrameMask, rewriter: Rewriter) -> fx.Node:
    """A call for each group of frames that see the same frames."""
    layout, lightint = choice.layout, torch.ops.lightint
    plane, key_start = layout.height * layout.width, int(site.key_axis.prefix)
    queries = _Queries.cut(site, layout.current_tokens, rewriter)
    text_at = (0, key_start) if key_start else (layout.current_tokens, END)
    prefix = layout.prefix if mask.sees_text else 0
    kept = (choice.density, choice.coverage, choice.protect_frames, choice.neighbours)
    policy = (*kept, _stated_scale(site), choice.context_density, choice.skipped_means, choice.min_tokens)
    found = []
    for group in mask.groups:
        ranges = [(key_start + start * plane, key_start + stop * plane) for start, stop in group.runs]
        at = [text_at, *ranges] if prefix else ranges
        keys, values = ([range_of(node, *each, rewriter) for each in at] for node in (site.key, site.value))
        own = range_of(queries.visual, group.start * plane, group.stop * plane, rewriter)
        rows = layout.height, layout.width
        where = ([group.stop - group.start, *rows], [group.frames, *rows], prefix, list(layout.tile))
        target = lightint.sparse_attention_segments.default
        found.append(rewriter.call(target, own, keys, values, *where, *policy))
    frames = rewriter.call(aten.cat.default, found, 2) if len(found) > 1 else found[0]
    return queries.join(site, mask, frames, rewriter)


@dataclass(frozen=True)
class _Queries:
    """The query axis cut into the grid and the text on one side of it, with the ends of both."""

    visual: fx.Node
    at: tuple[SizeArgument, SizeArgument]
    text: fx.Node | None = None
    text_at: tuple[SizeArgument, SizeArgument] = (0, 0)

    @classmethod
    def cut(cls, site: AttentionSite, visual: SizeArgument, rewriter: Rewriter) -> _Queries:
        axis, query = site.query_axis, site.query
        if same(axis.prefix, 0) and same(axis.suffix, 0):
            return cls(query, (0, END))
        if same(axis.prefix, 0):
            return cls._ranges(query, (0, visual), (visual, END), rewriter)
        start = difference_of(length_of(query, 2, rewriter), visual, rewriter)
        return cls._ranges(query, (start, END), (0, start), rewriter)

    @classmethod
    def _ranges(
        cls,
        query: fx.Node,
        at: tuple[SizeArgument, SizeArgument],
        text_at: tuple[SizeArgument, SizeArgument],
        rewriter: Rewriter,
    ) -> _Queries:
        return cls(range_of(query, *at, rewriter), at, range_of(query, *text_at, rewriter), text_at)

    def without_blind(self, mask: KeyMask | SampleMask, found: fx.Node, rewriter: Rewriter) -> fx.Node:
        """Zeros for queries that a mask leaves no key."""
        column = mask.query_column(rewriter)
        if column is None:
            return found
        sees = rewriter.call(aten.slice.Tensor, column, 2, *self.at)
        return rewriter.call(aten.where.ScalarOther, sees, found, 0.0)

    def join(
        self, site: AttentionSite, mask: KeyMask | FrameMask | SampleMask | None, found: fx.Node, rewriter: Rewriter
    ) -> fx.Node:
        if self.text is None:
            return found
        masks = () if mask is None else (mask.of_queries(*self.text_at, rewriter),)
        options = {"scale": _stated_scale(site), "enable_gqa": site.grouped}
        text = rewriter.call(ATTENTION, self.text, site.key, site.value, *masks, **options)
        parts = [text, found] if self.text_at[0] == 0 else [found, text]
        return rewriter.call(aten.cat.default, parts, 2)


def _prefix(
    site: AttentionSite,
    keys: Sequence[fx.Node],
    key_grid: Sequence[SizeArgument],
    rewriter: Rewriter,
    *,
    counted: bool,
) -> SizeArgument:
    """Keys in front of the frames. Where frames are counted in each call, those of no frame are among them."""
    text = _text_length(site.key_axis.spans)
    if isinstance(text, int) and not counted:
        return text
    total = sum_of([length_of(key, 2, rewriter) for key in keys], rewriter)
    return difference_of(total, product_of(key_grid, rewriter), rewriter)


def _text_length(spans: Sequence[Span]) -> Size:
    total: Size = 0
    for span in spans:
        total = size_of(total + (0 if span.grid else span.length))
    return total


def _stated_scale(site: AttentionSite) -> float | None:
    scale: float | None = argument(site.node, "scale")
    return scale
