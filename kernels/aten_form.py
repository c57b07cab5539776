"""Sparse attention in ATen operators that trace with symbolic sizes: for archives that run without Python and Triton.

The result is that of :mod:`.reference`: the same blocks are kept, the same means stand for the others. What is kept is
written as a mask of one dense attention, so nothing is saved; a file in this form runs everywhere. An importer that
knows the operator takes its own kernel instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import mixed_linear, ops
from .masked import bias_of
from .settings import Policy, Settings
from .spans import as_output
from .steps import ContextPools, default_scale
from .tiles import (
    Layout,
    accumulate_dtype,
    forced_blocks,
    largest_deviation,
    tile_counts,
    valid_counts,
    volume,
)

Grid = tuple[int, int, int]


def aten_table() -> dict[torch._ops.OperatorBase, Callable[..., Any]]:
    """Decompositions of every operator that a pass writes.

    Neither the cost model nor, for symbolic sizes, ``min_tokens`` is asked: an archive does not know its device, and a
    site that was rewritten stays sparse.
    """
    lightint = getattr(torch.ops, ops.NAMESPACE)
    return {
        lightint.sparse_attention.default: _sparse,
        lightint.sparse_attention_segments.default: _segments,
        lightint.sparse_attention_prepared.default: _prepared,
        lightint.sparse_attention_masked.default: _masked,
        lightint.pool_tiles.default: pool_tiles,
        lightint.mixed_linear.default: mixed_linear.widened,
    }


def _sparse(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **more: Any) -> Tensor:
    return attend(query, key, value, Settings(*rest, **more))


def _segments(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], *rest: Any, **more: Any) -> Tensor:
    return attend(query, _joined(keys), _joined(values), Settings(*rest, **more))


def _prepared(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], context_pool: Tensor, *rest: Any, **more: Any
) -> Tensor:
    settings, pools = ops.cut_pools(context_pool, rest, **more)
    return attend(query, _joined(keys), _joined(values), settings, pools)


def _masked(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], key_mask: Tensor, *rest: Any, **more: Any
) -> Tensor:
    settings, pools = ops.masked_pools(rest, **more)
    return attend(query, _joined(keys), _joined(values), settings, pools, key_mask)


def _joined(segments: Sequence[Tensor]) -> Tensor:
    return segments[0] if len(segments) == 1 else torch.cat(list(segments), 2)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    settings: Settings,
    pools: ContextPools | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Sparse attention of ``query`` [batch, query_heads, queries, head_dim]; ``ops`` says what the settings mean."""
    layout, policy = settings.layout, settings.policy
    scale = default_scale(policy.scale, query)
    bias = None if key_mask is None else _whole_mask(bias_of(key_mask, query), layout)
    if _is_dense(settings):
        mask = None if bias is None else bias[:, None, None].to(query.dtype)
        return _attention(query, key, value, mask, scale)
    given = pools or ContextPools()
    visual_key, visual_value = (each[:, :, layout.prefix :] for each in (key, value))
    pooled = _pooled(visual_key, layout, given.key)
    keep = _kept(pool_tiles(query, layout.current_grid, layout.tile), pooled, layout, policy, scale)
    finer = layout.finer(settings.skipped_means) if settings.skipped_means else None
    if finer is not None:
        means = _means(visual_key, visual_value, finer, given)
        key, value = torch.cat([key, means.key], 2), torch.cat([value, means.value], 2)
    logits = _bias_of_keys(keep, layout, finer, accumulate_dtype(query.dtype))
    return _attention(query, key, value, _by_query(_under(logits, bias, layout), layout).to(query.dtype), scale)


def _is_dense(settings: Settings) -> bool:
    """Whether all keys are read, as far as sizes that are known to be numbers say so."""
    layout, policy = settings.layout, settings.policy
    if not isinstance(layout.key_tokens, int):
        return False
    if settings.min_tokens is not None and layout.key_tokens < settings.min_tokens:
        return True
    kept = policy.density, policy.protect_frames, policy.neighbours, policy.context_density
    return layout.keeps_all(*kept, policy.coverage)


def _whole_mask(bias: Tensor, layout: Layout) -> Tensor:
    """The mask of all keys [batch or 1, keys], where it says something of the text alone too."""
    missing = layout.key_tokens - bias.shape[1]
    return bias if isinstance(missing, int) and missing == 0 else F.pad(bias, (0, missing))


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    grouped = key.shape[1] != query.shape[1]
    return as_output(F.scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=grouped), query)


def pool_tiles(tokens: Tensor, grid: Sequence[int], tile: Sequence[int]) -> Tensor:
    """:func:`reference.pool_tiles` of one span; of no frames there are no tiles."""
    tokens = tokens.to(accumulate_dtype(tokens.dtype))
    tiles = _tiles(tokens, grid, tile)
    count = valid_counts(_triple(grid), _triple(tile), tokens.device)[:, None]
    mean = tiles.sum(3) / count
    exist = _tiles(tokens.new_ones(1, 1, volume(grid), 1), grid, tile)
    spread = ((tiles - mean[:, :, :, None]) * exist).square().sum((3, 4)) / (count[:, 0] * tokens.shape[3])
    return torch.cat([mean, spread[..., None]], -1)


def _tiles(tokens: Tensor, grid: Sequence[int], tile: Sequence[int]) -> Tensor:
    """``[batch, heads, tokens, dim]`` as ``[batch, heads, tiles, slots, dim]``; no size is asked whether it is ragged.

    A number that is known to be whole is not padded.
    """
    batch, heads, _, dim = tokens.shape
    counts = tile_counts(grid, tile)
    pads = [n * extent - size for n, extent, size in zip(counts, tile, grid, strict=True)]
    frames = tokens.reshape(batch, heads, *grid, dim)
    if not all(isinstance(pad, int) and pad == 0 for pad in pads):
        frames = F.pad(frames, (0, 0, 0, pads[2], 0, pads[1], 0, pads[0]))
    split = frames.reshape(batch, heads, counts[0], tile[0], counts[1], tile[1], counts[2], tile[2], dim)
    return split.permute(0, 1, 2, 4, 6, 3, 5, 7, 8).reshape(batch, heads, volume(counts), volume(tile), dim)


def _pooled(visual: Tensor, layout: Layout, context_pool: Tensor | None) -> Tensor:
    """Pools of all visual blocks: of the context, which may be given, and of the current frames."""
    current = pool_tiles(visual[:, :, layout.context_tokens :], layout.current_grid, layout.tile)
    if not _has_context(layout):
        return current
    if context_pool is None:
        context_pool = pool_tiles(visual[:, :, : layout.context_tokens], layout.context_grid, layout.tile)
    return torch.cat([context_pool, current], 2)


def _has_context(layout: Layout) -> bool:
    return not (isinstance(layout.frames[0], int) and layout.frames[0] == 0)


def _sizes(layout: Layout, device: torch.device) -> Tensor:
    """Tokens of every visual block, int64."""
    current = valid_counts(layout.current_grid, layout.tile, device)
    if not _has_context(layout):
        return current
    return torch.cat([valid_counts(layout.context_grid, layout.tile, device), current])


def _kept(query_pool: Tensor, key_pool: Tensor, layout: Layout, policy: Policy, scale: float) -> Tensor:
    """The choice of :func:`reference.select_blocks`: bool ``[batch, query_heads, query_tiles, key_blocks]``."""
    scores = _scores(query_pool, key_pool, layout, scale)
    forced = forced_blocks(layout, policy.protect_frames, policy.neighbours).to(scores.device)
    ranked = scores.masked_fill(forced, float("inf")).sort(dim=-1, descending=True, stable=True).indices
    least = forced.sum(-1)
    budget = torch.full(
        (), layout.budget(policy.density, policy.context_density), dtype=torch.int64, device=least.device
    )
    number = torch.maximum(least, budget).expand(scores.shape[:-1])
    if policy.coverage is not None:
        mass = scores.softmax(-1).gather(-1, ranked).cumsum(-1)
        number = torch.minimum((mass < policy.coverage).sum(-1) + 1, number).maximum(least)
    places = torch.arange(layout.key_blocks, device=scores.device)
    chosen = (places < number[..., None]).to(torch.int32)
    return torch.zeros_like(chosen).scatter(-1, ranked, chosen).to(torch.bool)


def _scores(query_pool: Tensor, key_pool: Tensor, layout: Layout, scale: float) -> Tensor:
    """As of :func:`reference.block_scores`."""
    groups, dim = query_pool.shape[1] // key_pool.shape[1], query_pool.shape[-1] - 1
    key_pool = key_pool if groups == 1 else key_pool.repeat_interleave(groups, 1)
    key, spread = key_pool[..., :dim], key_pool[..., dim:]
    query, query_spread = query_pool[..., :dim], query_pool[..., dim:]
    deviation = abs(scale) * (query.square().sum(-1, keepdim=True) + dim * query_spread).sqrt() * spread.mT.sqrt()
    edge = largest_deviation(layout.tile)
    gain = torch.where(deviation <= edge, deviation.square() / 2, edge * (deviation - edge / 2))
    return query @ key.mT * scale + gain + _sizes(layout, query.device).to(query).log()


def _bias_of_keys(keep: Tensor, layout: Layout, finer: Layout | None, dtype: torch.dtype) -> Tensor:
    """What each query tile adds to the logits of each key, those of means at the end.

    That is 0 or minus infinity for a token, and for a mean the log of its tokens or minus infinity. It is one look-up
    by numbers that are in range everywhere: compilers may evaluate what stands behind a condition or a joined piece.
    """
    tokens, means = layout.key_tokens, 0 if finer is None else finer.key_blocks
    column = torch.arange(tokens + means, device=keep.device)
    block = _block_of_token(_at_least_0(column - layout.prefix), layout)
    if finer is not None:
        block = torch.where(column < tokens, block, _block_of_part(_at_least_0(column - tokens), layout, finer))
    read = keep.index_select(-1, _at_most(block, layout.key_blocks - 1)) | (column < layout.prefix)
    nothing, none = torch.zeros((), dtype=dtype), torch.full((), float("-inf"), dtype=dtype)
    bias = torch.where(read, nothing.to(keep.device), none.to(keep.device))
    if finer is None:
        return bias
    part = _at_most(_at_least_0(column - tokens), means - 1)
    size = _sizes(finer, keep.device).index_select(0, part).to(dtype).log()
    return torch.where(column < tokens, bias, size.masked_fill(read, float("-inf")))


def _at_least_0(numbers: Tensor) -> Tensor:
    """A choice, and no maximum: of a maximum over a range that is a symbol Inductor of torch 2.13 makes no index."""
    return torch.where(numbers < 0, 0, numbers)


def _at_most(numbers: Tensor, most: int) -> Tensor:
    return torch.minimum(numbers, torch.full((), most, dtype=numbers.dtype, device=numbers.device))


def _block_of_token(token: Tensor, layout: Layout) -> Tensor:
    """The block of visual tokens, numbered from the first of the context on."""
    frame, rest = token // (layout.height * layout.width), token % (layout.height * layout.width)
    current = (frame - layout.frames[0]) // layout.tile[0] + layout.context_rows
    row = torch.where(frame < layout.frames[0], frame // layout.tile[0], current)
    y, x = rest // layout.width // layout.tile[1], rest % layout.width // layout.tile[2]
    return (row * layout.blocks_high + y) * layout.blocks_wide + x


def _block_of_part(part: Tensor, layout: Layout, finer: Layout) -> Tensor:
    """The block that each tile of a finer layout is part of, as :func:`tiles.parents` has it."""
    row, rest = part // finer.row_blocks, part % finer.row_blocks
    ratio = [whole // each for whole, each in zip(layout.tile, finer.tile, strict=True)]
    current = (row - finer.context_rows) // ratio[0] + layout.context_rows
    row = torch.where(row < finer.context_rows, row // ratio[0], current)
    y, x = rest // finer.blocks_wide // ratio[1], rest % finer.blocks_wide // ratio[2]
    return (row * layout.blocks_high + y) * layout.blocks_wide + x


class _MeanTokens(NamedTuple):
    key: Tensor
    value: Tensor


def _means(key: Tensor, value: Tensor, finer: Layout, given: ContextPools) -> _MeanTokens:
    pools = (_pooled(key, finer, given.key_means), _pooled(value, finer, given.value_means))
    return _MeanTokens(*(pool[..., :-1].to(key.dtype) for pool in pools))


def _under(logits: Tensor, bias: Tensor | None, layout: Layout) -> Tensor:
    """``logits`` under a mask of keys; an element whose mask changes visual keys attends to all keys under it."""
    if bias is None:
        return logits
    more = logits.shape[-1] - layout.key_tokens
    cut = (bias[:, layout.prefix :] != 0).any(1)[:, None, None, None]
    visual = torch.zeros_like(bias[:, layout.prefix :])
    text = F.pad(torch.cat([bias[:, : layout.prefix], visual], 1), (0, more))[:, None, None].to(logits.dtype)
    alone = F.pad(bias, (0, more), value=float("-inf"))[:, None, None].to(logits.dtype)
    return torch.where(cut, alone, logits + text)


def _by_query(rows: Tensor, layout: Layout) -> Tensor:
    """``[..., query_tiles, n]`` as ``[..., query_tokens, n]``."""
    alone = dataclasses.replace(layout, frames=(0, layout.frames[1]), prefix=0)
    return rows.index_select(-2, _block_of_token(torch.arange(alone.current_tokens, device=rows.device), alone))


def _triple(extent: Sequence[int]) -> Grid:
    return (extent[0], extent[1], extent[2])
