"""The specification: each operator in plain torch, slow and exact, on any device.

Sums run in float32, or float64 for float64 inputs. Every other implementation is tested against these functions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .spans import Spans, as_output, to_tiles
from .tiles import Layout, accumulate_dtype, forced_blocks, key_token_map, token_map, valid_counts


def pool_tiles(tokens: Tensor, grid: tuple[int, int, int], tile: tuple[int, int, int]) -> Tensor:
    """Mean of the tokens that exist in each tile.

    Args:
        tokens: ``[batch, heads, frames * height * width, head_dim]``.

    Returns:
        ``[batch, heads, tiles, head_dim]``, float32 (float64 for float64 tokens), contiguous.
    """
    tiles = to_tiles(tokens.to(accumulate_dtype(tokens.dtype)), grid, tile)
    valid = valid_counts(grid, tile).to(tiles)
    return (tiles.sum(3) / valid[:, None]).contiguous()


def pool_spans(spans: Sequence[tuple[Tensor, tuple[int, int, int]]], tile: tuple[int, int, int]) -> list[Tensor]:
    """:func:`pool_tiles` of several ``(tokens, grid)``: the form in which every implementation pools."""
    return [pool_tiles(tokens, grid, tile) for tokens, grid in spans]


def block_scores(query_pool: Tensor, key_pool: Tensor, layout: Layout, scale: float) -> Tensor:
    """Estimated log-mass of each key block: scaled product of the means plus the log of the block's token count.

    Returns:
        ``[batch, query_heads, query_tiles, key_blocks]`` in the pools' dtype.
    """
    groups = query_pool.shape[1] // key_pool.shape[1]
    scores = query_pool @ key_pool.repeat_interleave(groups, 1).transpose(-1, -2)
    return scores * scale + key_token_map(layout)[1].sum(-1).to(scores).log()


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
) -> tuple[Tensor, Tensor]:
    """Lists of kept blocks: the forced ones first, then by score, until the budget or the coverage is met.

    ``key_pools`` are the pooled context (if any) and current keys, in order. Ties go to the lower block number. See
    ``ops`` for the meaning of the lists.
    """
    scores = block_scores(query_pool, torch.cat(list(key_pools), 2), layout, scale)
    forced = forced_blocks(layout, protect_frames, neighbours).to(scores.device)
    ranked = scores.masked_fill(forced, float("inf")).sort(dim=-1, descending=True, stable=True).indices
    least = forced.sum(-1)
    number = least.clamp(min=layout.budget(density)).expand(scores.shape[:-1])
    if coverage is not None:
        mass = scores.softmax(-1).gather(-1, ranked).cumsum(-1)
        number = torch.minimum((mass < coverage).sum(-1) + 1, number).maximum(least)
    places = torch.arange(layout.key_blocks, device=scores.device)
    keep = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, ranked, places < number[..., None])
    width = layout.list_width(density, protect_frames, neighbours)
    ascending = torch.where(keep, places, layout.key_blocks).sort(-1).values[..., :width]
    index = torch.where(places[:width] < number[..., None], ascending, 0)
    return index.to(torch.int32).contiguous(), number.to(torch.int32).contiguous()


def multiplicity(index: Tensor, count: Tensor, layout: Layout) -> Tensor:
    """How often each query tile lists each key block, int64 ``[batch, heads, query_tiles, key_blocks]``."""
    listed = torch.arange(index.shape[-1], device=index.device) < count[..., None]
    blocks = torch.where(listed, index, 0).long()
    times = blocks.new_zeros(*index.shape[:-1], layout.key_blocks)
    return times.scatter_add(-1, blocks, listed.long())


def token_weights(index: Tensor, count: Tensor, layout: Layout) -> Tensor:
    """The lists expanded to tokens: weight of each key for each query, int64 ``[batch, heads, queries, keys]``."""
    times = multiplicity(index, count, layout)
    query_tile = _tile_of_token(token_map(layout.current_grid, layout.tile), layout.current_tokens)
    key_tile = _tile_of_token(key_token_map(layout), layout.context_tokens + layout.current_tokens)
    visual = times[..., query_tile.to(index.device), :][..., key_tile.to(index.device)]
    return torch.cat([visual.new_ones(*visual.shape[:-1], layout.prefix), visual], -1)


def _tile_of_token(tokens_valid: tuple[Tensor, Tensor], length: int) -> Tensor:
    tokens, valid = tokens_valid
    tile = torch.arange(tokens.shape[0])[:, None].expand_as(tokens)
    return torch.empty(length, dtype=torch.int64).scatter(0, tokens[valid], tile[valid])


def attend(
    query: Tensor, keys: Spans, values: Spans, index: Tensor, count: Tensor, layout: Layout, scale: float
) -> Tensor:
    """Attention over the prefix and the listed blocks, by the expanded token weights.

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
    # An empty row has no finite logit: the clamp makes its exponentials zero instead of NaN.
    attention = (logits - logits.amax(-1, keepdim=True).clamp(min=torch.finfo(dtype).min)).exp()
    total = attention.sum(-1, keepdim=True)
    return as_output(attention @ value / total.masked_fill(total == 0, 1.0), query)
