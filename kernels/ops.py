"""The operators' names, schemas and fakes: what a graph, an archive or another kernel may rely on.

Meaning of the arguments, shared by every operator and every implementation:

*Keys in order.* The key axis is ``prefix | context frames | current frames``: ``prefix`` text tokens first, then the
visual tokens of ``key_grid = (frames, height, width)``, frame-major, then row, then column. The query axis is
``query_grid``, the **last** frames of ``key_grid``: equal to it in a prefill, its tail (the current chunk) in a
denoising step. Height and width of the two grids are the same. Segment lists hold the same axis cut into non-empty
pieces, in order.

*Tiles.* ``tile = (t, h, w)`` tokens. Context frames (``key_grid`` minus ``query_grid``, possibly none) and current
frames are tiled **separately**, each from its own first frame, so that query tile ``(r, y, x)`` covers exactly the
tokens of key tile ``(context_rows + r, y, x)`` with ``context_rows = ceil(context_frames / t)``. The last tile of an
axis may be ragged; its empty slots do not exist: they join neither means nor softmax. Slots inside a tile run
t-major, then h, then w.

*Key block number.* 0-based over visual key tiles only: context tiles first, then current tiles, each t-major, then h,
then w: ``block = (row * blocks_high + y) * blocks_wide + x`` with ``row`` in ``[0, context_rows + current_rows)``.
Prefix tokens carry no number: they are attended by every query and **never listed**. Query tile numbers are ``(r *
blocks_high + y) * blocks_wide + x``.

*Lists.* ``index`` int32 ``[batch, query_heads, query_tiles, width]`` and ``count`` int32 ``[batch, query_heads,
query_tiles]``, both contiguous. Row ``i`` attends to blocks ``index[..., i, :count]``; entries past ``count`` may
hold anything. Selection writes ascending lists without duplicates; attention takes any order, and a block listed n
times weighs n times. A row with ``count == 0`` and ``prefix == 0`` gives zeros.

*Skipped blocks.* With ``skipped_means`` above 0, a visual key block that a query tile does not read joins its softmax
in that many parts (halves by frames, then rows, then columns), each of them as one key, the mean of the part's keys
with the log of their number added to the logit, and one value, their mean. A part without tokens does not exist. The
parts of all blocks are numbered like blocks: they are the tiles of the same grids with the part as the tile.

*Masked keys.* ``key_mask`` ``[batch or 1, key_tokens]`` is bool (True takes part) or numbers that are added to the
logits; it is data, and never read by the host. One of ``prefix`` columns says so of the text alone. An element of the
batch whose mask leaves some visual key out, or adds something to its logit, attends to all keys under the mask.

*Dense or sparse.* ``min_tokens`` says who decides: with a number, the call is sparse from that many keys on and dense
below, so 0 is always sparse; without one the cost model decides for the sizes of the call. Dense in any case is a call
that would keep every block, and one on a device, dtype or head_dim that no sparse kernel takes.

*Budget.* ``floor(density * blocks)``; with ``context_density`` that of the current blocks and
``floor(context_density * context blocks)`` more, spent on whatever scores best.

*Heads.* ``query_heads`` is a multiple of ``key_heads``; query head ``i`` reads key head ``i // (query_heads //
key_heads)``.

*Output.* ``[batch, query_heads, query_tokens, head_dim]`` in token order, the query's dtype. Its memory is that of a
contiguous tensor, or of a contiguous ``[batch, tokens, heads, head_dim]`` when the query's head stride is smaller
than its token stride (the layout of a projection that was only viewed and transposed).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from . import checks, dispatch, planning
from .settings import Grid, Policy, Settings
from .spans import empty_output, split_spans
from .steps import ContextPools, default_scale
from .tiles import Layout, accumulate_dtype, tile_counts, volume

NAMESPACE = "lightint"

_SITE = "SymInt[] query_grid, SymInt[] key_grid, SymInt prefix, int[] tile"
_POLICY = "float density, float? coverage, int protect_frames, int neighbours"

_SPARSE = f"{_SITE}, {_POLICY}, float? scale, float? context_density=None, int skipped_means=0"

_DENSE_BELOW = "int? min_tokens=None"

SCHEMAS = {
    "sparse_attention": f"(Tensor query, Tensor key, Tensor value, {_SPARSE}, {_DENSE_BELOW}) -> Tensor",
    "sparse_attention_segments": (
        f"(Tensor query, Tensor[] keys, Tensor[] values, {_SPARSE}, {_DENSE_BELOW}) -> Tensor"
    ),
    "sparse_attention_prepared": (
        "(Tensor query, Tensor[] keys, Tensor[] values, Tensor context_pool, "
        f"{_SPARSE}, Tensor? context_key_means=None, Tensor? context_value_means=None, {_DENSE_BELOW}) -> Tensor"
    ),
    "sparse_attention_masked": (
        f"(Tensor query, Tensor[] keys, Tensor[] values, Tensor key_mask, {_SPARSE}, {_DENSE_BELOW}, "
        "Tensor? context_pool=None, Tensor? context_key_means=None, Tensor? context_value_means=None) -> Tensor"
    ),
    "pool_tiles": "(Tensor tokens, SymInt[] grid, int[] tile) -> Tensor",
    "select_blocks": (
        "(Tensor query_pool, Tensor[] key_pools, SymInt[] query_grid, SymInt[] key_grid, int[] tile, "
        f"{_POLICY}, float? scale, float? context_density=None) -> (Tensor index, Tensor count)"
    ),
    "block_sparse_attention": (
        f"(Tensor query, Tensor key, Tensor value, Tensor index, Tensor count, {_SITE}, float? scale) -> Tensor"
    ),
    "block_sparse_attention_segments": (
        f"(Tensor query, Tensor[] keys, Tensor[] values, Tensor index, Tensor count, {_SITE}, float? scale) -> Tensor"
    ),
}
"""Every operator's schema; the strings are what graphs and archives hold, so they only grow, by names and at ends."""

_library = Library(NAMESPACE, "FRAGMENT")


def sparse_attention_segments(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], *rest: Any) -> Tensor:
    """Pool, select and attend; dense attention where nothing is skipped or skipping would not pay."""
    return planning.run(query, keys, values, ContextPools(), Settings(*rest))


def sparse_attention_prepared(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], context_pool: Tensor, *rest: Any
) -> Tensor:
    """:func:`sparse_attention_segments` with the pooled context keys, and perhaps means, given."""
    settings, pools = cut_pools(context_pool, rest)
    if not settings.layout.frames[0]:
        pools = ContextPools()
    return planning.run(query, keys, values, pools, settings)


def cut_pools(context_pool: Tensor, rest: Sequence[Any], **named: Any) -> tuple[Settings, ContextPools]:
    """The settings among the last arguments of :func:`sparse_attention_prepared`, and all that is pooled."""
    given = {**named, **dict(zip((*_MEANS, "min_tokens"), rest[_SETTINGS:], strict=False))}
    means = [given.pop(name, None) for name in _MEANS]
    return Settings(*rest[:_SETTINGS], **given), ContextPools(context_pool, *means)


_MEANS = ("context_key_means", "context_value_means")
_MASKED = ("min_tokens", "context_pool", *_MEANS)
_SETTINGS = 11
"""Arguments of sparse attention behind its tensors, in front of the means that were prepared."""


def sparse_attention_masked(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], key_mask: Tensor, *rest: Any
) -> Tensor:
    """:func:`sparse_attention_prepared` under a mask of keys, with the pools that are given."""
    settings, pools = masked_pools(rest)
    return planning.run(query, keys, values, pools, settings, key_mask)


def masked_pools(rest: Sequence[Any], **named: Any) -> tuple[Settings, ContextPools]:
    """The settings among the last arguments of :func:`sparse_attention_masked`, and what is pooled of the context."""
    given = {**dict(zip(_MASKED, rest[_SETTINGS:], strict=False)), **named}
    pools = ContextPools(*(given.pop(name, None) for name in _MASKED[1:]))
    settings = Settings(*rest[:_SETTINGS], **given)
    return settings, pools if settings.layout.frames[0] else ContextPools()


def sparse_attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
    """:func:`sparse_attention_segments` of one segment."""
    return planning.run(query, [key], [value], ContextPools(), Settings(*rest))


def pool_tiles(tokens: Tensor, grid: Sequence[int], tile: Sequence[int]) -> Tensor:
    """Mean and spread of each tile of one span, see :func:`reference.pool_tiles`; of no frames there are no tiles."""
    checks.pool(tokens, grid, tile)
    if not tokens.shape[2]:
        return _fake_pool(tokens, grid, tile)
    steps = dispatch.load(dispatch.implementation(tokens))  # one kernel pools tiles of every shape
    with planning.on_device_of(tokens):
        return steps.pool_spans([(tokens, _triple(grid))], _triple(tile))[0]


def select_blocks(
    query_pool: Tensor, key_pools: Sequence[Tensor], query_grid: Grid, key_grid: Grid, tile: Grid, *rest: Any
) -> tuple[Tensor, Tensor]:
    """Block lists from pooled queries and keys, see :func:`reference.select_blocks`."""
    layout, policy = _selection(query_pool, key_pools, query_grid, key_grid, tile, rest)
    with planning.on_device_of(query_pool):
        chosen = policy.arguments(query_pool[..., :-1])
        found = dispatch.selector(query_pool)(query_pool, key_pools, layout, **chosen)
    return found.lists, found.counts


def _selection(
    query_pool: Tensor, key_pools: Sequence[Tensor], query_grid: Grid, key_grid: Grid, tile: Grid, rest: Sequence[Any]
) -> tuple[Layout, Policy]:
    layout, policy = Layout.of(query_grid, key_grid, tile), Policy(*rest)
    checks.pools(query_pool, key_pools, layout)
    policy.check()
    return layout, policy


def block_sparse_attention_segments(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], index: Tensor, count: Tensor, *site: Any
) -> Tensor:
    """Attention over the prefix and the listed blocks, see :func:`reference.attend`."""
    *where, scale = site
    layout = checks.site(query, keys, values, *where)
    checks.lists(index, count, query, layout)
    steps = dispatch.load(dispatch.implementation(query, where[-1]))
    spans = split_spans(keys, layout), split_spans(values, layout)
    with planning.on_device_of(query):
        return steps.attend(query, *spans, index, count, layout, default_scale(scale, query))


def block_sparse_attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
    """:func:`block_sparse_attention_segments` of one segment."""
    return block_sparse_attention_segments(query, [key], [value], *rest)


def _triple(extent: Sequence[int]) -> tuple[int, int, int]:
    return (extent[0], extent[1], extent[2])


def _fake_attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
    return _fake_segments(query, [key], [value], *rest)


def _fake_segments(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], *rest: Any) -> Tensor:
    Settings(*rest).checked(query, keys, values)
    return empty_output(query)


def _fake_prepared(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], context_pool: Tensor, *rest: Any
) -> Tensor:
    settings, pools = cut_pools(context_pool, rest)
    checks.given_pools(pools, keys[0], settings.checked(query, keys, values), settings.skipped_means)
    return empty_output(query)


def _fake_masked(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], key_mask: Tensor, *rest: Any
) -> Tensor:
    settings, pools = masked_pools(rest)
    layout = settings.checked(query, keys, values)
    checks.given_pools(pools, keys[0], layout, settings.skipped_means)
    checks.key_mask(key_mask, query, layout)
    return empty_output(query)


def _fake_block(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
    return _fake_block_segments(query, [key], [value], *rest)


def _fake_block_segments(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], *rest: Any) -> Tensor:
    checks.site(query, keys, values, *rest[2:6])
    return empty_output(query)


def _fake_pool(tokens: Tensor, grid: Sequence[int], tile: Sequence[int]) -> Tensor:
    checks.pool(tokens, grid, tile)
    shape = (tokens.shape[0], tokens.shape[1], volume(tile_counts(grid, tile)), tokens.shape[3] + 1)
    return tokens.new_empty(shape, dtype=accumulate_dtype(tokens.dtype))


def _fake_select(
    query_pool: Tensor, key_pools: Sequence[Tensor], query_grid: Grid, key_grid: Grid, tile: Grid, *rest: Any
) -> tuple[Tensor, Tensor]:
    layout, policy = _selection(query_pool, key_pools, query_grid, key_grid, tile, rest)
    rows = (query_pool.shape[0], query_pool.shape[1], layout.query_tiles)
    width = layout.list_width(policy.density, policy.protect_frames, policy.neighbours, policy.context_density)
    return query_pool.new_empty((*rows, width), dtype=torch.int32), query_pool.new_empty(rows, dtype=torch.int32)


def _register(name: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    qualified = f"{NAMESPACE}::{name}"
    _library.define(name + SCHEMAS[name], tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_library)
    torch.library.register_autograd(qualified, checks.no_gradient, lib=_library)


_register("sparse_attention", sparse_attention, _fake_attention)
_register("sparse_attention_segments", sparse_attention_segments, _fake_segments)
_register("sparse_attention_prepared", sparse_attention_prepared, _fake_prepared)
_register("sparse_attention_masked", sparse_attention_masked, _fake_masked)
_register("pool_tiles", pool_tiles, _fake_pool)
_register("select_blocks", select_blocks, _fake_select)
_register("block_sparse_attention", block_sparse_attention, _fake_block)
_register("block_sparse_attention_segments", block_sparse_attention_segments, _fake_block_segments)
