"""Python entry points of the operators: keyword arguments with defaults over the schemas of ``ops``.

Checks run once inside the operator, before anything is launched, so that a graph is checked like a direct call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Required, Unpack

import torch
from torch import Tensor

from lightint_compile.torch_compat import is_observed

from . import checks, planning
from . import ops as _ops  # noqa: F401  registers the operators
from .dispatch import Choice, implementation, using
from .settings import (
    POLICY,
    SITE,
    SPARSE,
    Grid,
    PolicyArguments,
    Settings,
    SiteArguments,
    SparseArguments,
)
from .steps import ContextPools
from .tiles import part_of

_lightint = torch.ops.lightint

__all__ = [
    "Choice",
    "block_sparse_attention",
    "block_sparse_attention_segments",
    "implementation",
    "part_tile",
    "pool_tiles",
    "prepare_context",
    "select_blocks",
    "sparse_attention",
    "sparse_attention_masked",
    "sparse_attention_prepared",
    "sparse_attention_segments",
    "using",
]


def sparse_attention(query: Tensor, key: Tensor, value: Tensor, **given: Unpack[SparseArguments]) -> Tensor:
    """Attention over a (frames, height, width) token grid that skips key tiles of little weight.

    Args:
        query: ``[batch, query_heads, query_tokens, head_dim]``; a transposed ``[batch, tokens, heads, dim]`` is fine.
        key: ``[batch, key_heads, prefix + frames * height * width, head_dim]``, prefix first.
        value: of the key's shape.
        given: the site and which blocks are kept, see :class:`~.settings.SparseArguments`.

    Returns:
        ``[batch, query_heads, query_tokens, head_dim]``; memory order as stated in ``ops``.

    Raises:
        InputError: arguments that do not fit together, before anything is launched.
    """
    settings = Settings(**{**SPARSE, **given})
    if not torch.compiler.is_compiling() and _is_plain(query, key, value):
        return planning.run(query, [key], [value], ContextPools(), settings)
    return _lightint.sparse_attention(query, key, value, *settings)


def sparse_attention_segments(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], **given: Unpack[SparseArguments]
) -> Tensor:
    """:func:`sparse_attention` with keys and values as consecutive segments (text, cached context, current).

    Nothing is concatenated as long as the prefix, the context and the current frames are each inside of one segment.
    """
    settings = Settings(**{**SPARSE, **given})
    if not torch.compiler.is_compiling() and _is_plain(query, *keys, *values):
        return planning.run(query, keys, values, ContextPools(), settings)
    return _lightint.sparse_attention_segments(query, list(keys), list(values), *settings)


def sparse_attention_prepared(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    context_pool: Tensor,
    context_key_means: Tensor | None = None,
    context_value_means: Tensor | None = None,
    **given: Unpack[SparseArguments],
) -> Tensor:
    """:func:`sparse_attention_segments` with the context's pools of :func:`prepare_context`, made once a chunk.

    ``context_pool`` are the keys by tiles; the other two are keys and values pooled by the parts that have means
    (``tile`` of :func:`part_tile`), and made here where one of them is left out.
    """
    settings = Settings(**{**SPARSE, **given})
    pools = ContextPools(context_pool, context_key_means, context_value_means)
    if not torch.compiler.is_compiling() and _is_plain(query, *keys, *values, *(p for p in pools if p is not None)):
        return planning.run(query, keys, values, pools, settings)
    *rest, min_tokens = settings
    return _lightint.sparse_attention_prepared(
        query, list(keys), list(values), context_pool, *rest, context_key_means, context_value_means, min_tokens
    )


def sparse_attention_masked(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    key_mask: Tensor,
    context_pool: Tensor | None = None,
    context_key_means: Tensor | None = None,
    context_value_means: Tensor | None = None,
    **given: Unpack[SparseArguments],
) -> Tensor:
    """:func:`sparse_attention_segments` under a mask of keys, with pools as of :func:`sparse_attention_prepared`.

    ``key_mask``, ``[batch or 1, key_tokens]`` or of the ``prefix`` alone, is bool (True takes part) or floating (added
    to the logits). The host does not read it. An element of the batch whose mask touches frames attends to all keys.
    """
    *rest, min_tokens = Settings(**{**SPARSE, **given})
    pools = (context_pool, context_key_means, context_value_means)
    return _lightint.sparse_attention_masked(query, list(keys), list(values), key_mask, *rest, min_tokens, *pools)


def _is_plain(*tensors: Tensor) -> bool:
    """Whether a call has no gradients, subclasses, modes or transforms. Then the dispatcher, which takes
    longer than small attention on a GPU, has nothing to add."""
    grad = torch.is_grad_enabled()
    for tensor in tensors:
        if type(tensor) is not Tensor or (grad and tensor.requires_grad):
            return False
    return not is_observed()


def pool_tiles(tokens: Tensor, *, grid: Grid, tile: Grid = (4, 8, 4)) -> Tensor:
    """Mean of the existing tokens of each tile of one span, and their spread (the mean variance of a channel).

    Args:
        tokens: ``[batch, heads, frames * height * width, head_dim]``; without frames there are no tiles.

    Returns:
        float32 ``[batch, heads, tiles, head_dim + 1]`` (float64 for float64 tokens), the spread last.

    Raises:
        InputError: a grid that is not the tokens', or a tile that does not fit.
    """
    return _lightint.pool_tiles(tokens, grid, tile)


def prepare_context(key: Tensor, *, grid: Grid, tile: Grid = (4, 8, 4)) -> Tensor:
    """Pooled context keys, or values, computed once a chunk and given to every step.

    ``key`` are the context's visual tokens alone (no text), ``grid`` its (frames, height, width).
    """
    return pool_tiles(key, grid=grid, tile=tile)


def part_tile(tile: Grid = (4, 8, 4), parts: int = 1) -> tuple[int, int, int]:
    """The tile of the parts of a block that have means of their own: halved along frames, height, width in turn.

    Raises:
        InputError: a number of parts that the tile does not have.
    """
    checks.parts(tile, parts)
    return part_of((tile[0], tile[1], tile[2]), parts)


class SelectionArguments(PolicyArguments, total=False):
    """Grids, tile and which blocks are kept; see :class:`~.settings.SparseArguments`."""

    query_grid: Required[Grid]
    key_grid: Required[Grid]
    tile: Grid
    scale: float | None


def select_blocks(
    query_pool: Tensor, key_pools: Sequence[Tensor], **given: Unpack[SelectionArguments]
) -> tuple[Tensor, Tensor]:
    """Ascending lists of the kept key blocks of every query tile.

    Args:
        query_pool: ``[batch, query_heads, query_tiles, head_dim + 1]`` of :func:`pool_tiles`.
        key_pools: pooled context keys (if there is context), then pooled current keys.
        given: the grids, and which blocks are kept.

    Returns:
        index: int32 ``[batch, query_heads, query_tiles, width]``.
        count: int32 ``[batch, query_heads, query_tiles]``.

    Raises:
        InputError: pools that do not belong to the grids, or a density out of range.
    """
    settings = Settings(**{**SITE, **POLICY, **given})
    grids = (settings.query_grid, settings.key_grid, settings.tile)
    return _lightint.select_blocks(query_pool, list(key_pools), *grids, *settings.policy)


def block_sparse_attention(
    query: Tensor, key: Tensor, value: Tensor, index: Tensor, count: Tensor, **site: Unpack[SiteArguments]
) -> Tensor:
    """Attention over the prefix and the listed key blocks only; ``index`` and ``count`` as :func:`select_blocks` gives.

    Raises:
        InputError: arguments that do not fit together; with ``LIGHTINT_DEBUG=1`` also a block out of range.
    """
    return _lightint.block_sparse_attention(query, key, value, index, count, *_site(site))


def block_sparse_attention_segments(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    index: Tensor,
    count: Tensor,
    **site: Unpack[SiteArguments],
) -> Tensor:
    """:func:`block_sparse_attention` with keys and values as consecutive segments."""
    return _lightint.block_sparse_attention_segments(query, list(keys), list(values), index, count, *_site(site))


def _site(given: SiteArguments) -> tuple[Grid, Grid, int, Grid, float | None]:
    settings = Settings(**{**SITE, **POLICY, **given})
    return settings.query_grid, settings.key_grid, settings.prefix, settings.tile, settings.scale
