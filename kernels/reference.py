"""The specification: each operator in plain torch, slow and exact, on any device.

Sums run in float32, or float64 for float64 inputs. Every other implementation is tested against these functions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .skipped import Means, Selection
from .spans import Spans, as_output, to_tiles
from .tiles import (
    Layout,
    accumulate_dtype,
    forced_blocks,
    key_token_map,
    largest_deviation,
    parents,
    token_map,
    valid_counts,
)


def pool_tiles(tokens: Tensor, grid: tuple[int, int, int], tile: tuple[int, int, int]) -> Tensor:
    """Mean of the tokens that exist in each tile, followed by their spread: the variance of a channel on average.

    Args:
        tokens: ``[batch, heads, frames * height * width, head_dim]``.

    Returns:
        ``[batch, heads, tiles, head_dim + 1]``, float32 (float64 for float64 tokens), contiguous.
    """
    tokens = tokens.to(accumulate_dtype(tokens.dtype))
    tiles = to_tiles(tokens, grid, tile)
    exist = to_tiles(tokens.new_ones(1, 1, tokens.shape[2], 1), grid, tile)
    valid = valid_counts(grid, tile, tokens.device)[:, None]
    mean = tiles.sum(3) / valid
    spread = ((tiles - mean[:, :, :, None]) * exist).square().sum((3, 4)) / (valid[:, 0] * tokens.shape[3])
    return torch.cat([mean, spread[..., None]], -1).contiguous()


def pool_spans(spans: Sequence[tuple[Tensor, tuple[int, int, int]]], tile: tuple[int, int, int]) -> list[Tensor]:
    """:func:`pool_tiles` of several ``(tokens, grid)``: the form in which every implementation pools."""
    return [pool_tiles(tokens, grid, tile) for tokens, grid in spans]


def block_scores(query_pool: Tensor, key_pool: Tensor, layout: Layout, scale: float) -> Tensor:
    """Estimated log-mass of each key block.

    That is the scaled product of the means, the log of the block's token count, and what the keys' spread adds: the log
    of the mean exponential of ``n`` normal numbers of variance ``v``, which is ``v / 2`` up to ``v = 2 ln n`` and grows
    with the largest of them beyond it (the random energy model, Derrida 1981). ``n`` is the whole tile's.

    Returns:
        ``[batch, query_heads, query_tiles, key_blocks]`` in the pools' dtype.
    """
    groups, dim = query_pool.shape[1] // key_pool.shape[1], query_pool.shape[-1] - 1
    key, spread = key_pool.repeat_interleave(groups, 1).split([dim, 1], -1)
    query, query_spread = query_pool.split([dim, 1], -1)
    deviation = abs(scale) * (query.square().sum(-1, keepdim=True) + dim * query_spread).sqrt() * spread.mT.sqrt()
    edge = largest_deviation(layout.tile)
    gain = torch.where(deviation <= edge, deviation.square() / 2, edge * (deviation - edge / 2))
    return query @ key.mT * scale + gain + key_token_map(layout)[1].sum(-1).to(query).log()


def select_blocks(
    query_pool: Tensor,
    key_pools: Sequence[Tensor],
    layout: Layout,
    *,
    density: float,
    coverage: float | None,
    protect_frames: int,
    neighbours: int,
    scale: float,
    context_density: float | None = None,
    finer: Layout | None = None,
) -> Selection:
    """Lists of kept blocks: the forced ones first, then by score, until the budget or the coverage is met.

    ``key_pools`` are the pooled context (if any) and current keys, in order. Ties go to the lower block number. See
    ``ops`` for the meaning of the lists, :class:`Means` for that of the offsets, which are made for the parts of a
    ``finer`` layout.
    """
    scores = block_scores(query_pool, torch.cat(list(key_pools), 2), layout, scale)
    forced = forced_blocks(layout, protect_frames, neighbours).to(scores.device)
    ranked = scores.masked_fill(forced, float("inf")).sort(dim=-1, descending=True, stable=True).indices
    least = forced.sum(-1)
    number = least.clamp(min=layout.budget(density, context_density)).expand(scores.shape[:-1])
    if coverage is not None:
        mass = scores.softmax(-1).gather(-1, ranked).cumsum(-1)
        number = torch.minimum((mass < coverage).sum(-1) + 1, number).maximum(least)
    places = torch.arange(layout.key_blocks, device=scores.device)
    keep = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, ranked, places < number[..., None])
    width = layout.list_width(density, protect_frames, neighbours, context_density)
    ascending = torch.where(keep, places, layout.key_blocks).sort(-1).values[..., :width]
    index = torch.where(places[:width] < number[..., None], ascending, 0)
    lists = index.to(torch.int32).contiguous(), number.to(torch.int32).contiguous()
    if finer is None:
        return Selection(*lists)
    read = keep[..., parents(layout, finer).to(keep.device)]
    tokens = key_token_map(finer)[1].sum(-1).to(scores).log().expand(read.shape)
    return Selection(*lists, tokens.masked_fill(read, float("-inf")).contiguous())


def multiplicity(index: Tensor, count: Tensor, layout: Layout) -> Tensor:
    """How often each query tile lists each key block, int64 ``[batch, heads, query_tiles, key_blocks]``."""
    listed = torch.arange(index.shape[-1], device=index.device) < count[..., None]
    blocks = torch.where(listed, index, 0).long()
    times = blocks.new_zeros(*index.shape[:-1], layout.key_blocks)
    return times.scatter_add(-1, blocks, listed.long())


def token_weights(index: Tensor, count: Tensor, layout: Layout) -> Tensor:
    """The lists expanded to tokens: weight of each key for each query, int64 ``[batch, heads, queries, keys]``."""
    times = by_query(multiplicity(index, count, layout), layout)
    key_tile = _tile_of_token(key_token_map(layout), layout.context_tokens + layout.current_tokens)
    visual = times[..., key_tile.to(index.device)]
    return torch.cat([visual.new_ones(*visual.shape[:-1], layout.prefix), visual], -1)


def by_query(rows: Tensor, layout: Layout) -> Tensor:
    """``[..., query_tiles, n]`` as ``[..., query_tokens, n]``."""
    query_tile = _tile_of_token(token_map(layout.current_grid, layout.tile), layout.current_tokens)
    return rows[..., query_tile.to(rows.device), :]


def _tile_of_token(tokens_valid: tuple[Tensor, Tensor], length: int) -> Tensor:
    tokens, valid = tokens_valid
    tile = torch.arange(tokens.shape[0])[:, None].expand_as(tokens)
    return torch.empty(length, dtype=torch.int64).scatter(0, tokens[valid], tile[valid])


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
    """Attention over the prefix, the listed blocks and the means that stand for others, by expanded token weights.

    Keys that no query lists are replaced by zeros first, so that a NaN in them cannot reach the result.
    """
    dtype, groups = accumulate_dtype(query.dtype), query.shape[1] // keys.current.shape[1]
    weights = token_weights(index, count, layout).to(dtype)
    used = (weights > 0).any(2)[..., None]
    key, value = (
        torch.cat([s.to(dtype) for s in spans], 2).repeat_interleave(groups, 1).masked_fill(~used, 0.0)
        for spans in (keys, values)
    )
    logits = query.to(dtype) @ key.transpose(-1, -2) * scale + weights.log()
    if means is not None:
        mean_key, mean_value = (m.to(dtype).repeat_interleave(groups, 1) for m in (means.key, means.value))
        stand_ins = query.to(dtype) @ mean_key.transpose(-1, -2) * scale + by_query(means.offsets, layout).to(dtype)
        logits, value = torch.cat([logits, stand_ins], -1), torch.cat([value, mean_value], 2)
    # An empty row has no finite logit: the clamp makes its exponentials zero instead of NaN.
    attention = (logits - logits.amax(-1, keepdim=True).clamp(min=torch.finfo(dtype).min)).exp()
    total = attention.sum(-1, keepdim=True)
    return as_output(attention @ value / total.masked_fill(total == 0, 1.0), query)


def attend_all(
    out: Tensor, query: Tensor, keys: Spans, values: Spans, bias: Tensor, wanted: Tensor, scale: float
) -> Tensor:
    """``out``, with attention over all keys instead for the elements of the batch that are ``wanted``.

    Args:
        bias: ``[batch or 1, key_tokens]``, added to the logits, in the dtype in which sums run.
        wanted: bool ``[batch]``. Other elements are left as they are.
    """
    if not bool(wanted.any()):
        return out
    key, value = (torch.cat(list(spans), 2).to(bias.dtype) for spans in (keys, values))
    grouped = key.shape[1] != query.shape[1]
    masks = bias[:, None, None]
    dense = F.scaled_dot_product_attention(
        query.to(bias.dtype), key, value, attn_mask=masks, scale=scale, enable_gqa=grouped
    )
    return as_output(torch.where(wanted[:, None, None, None], dense.to(out.dtype), out), query)
