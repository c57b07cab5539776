"""Sparse attention as its three portable Triton steps, for archives that must run without Python.

An AOTInductor package cannot call a Python operator; the portable steps are ``triton_op``s, which Inductor compiles
into the package. ``exported.run_decompositions(portable_table())`` puts them in place of the operators of ``ops``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import mixed_linear, ops
from .masked import run_masked
from .settings import Policy, Settings
from .spans import split_spans
from .steps import ContextPools, default_scale, run_steps
from .tiles import Layout


def portable_table() -> dict[torch._ops.OperatorBase, Callable[..., Any]]:
    """Decompositions of every operator that reads tokens into portable steps.

    Neither the cost model nor ``min_tokens`` is asked: an archive does not know its device, and a site that was
    rewritten stays sparse.

    Raises:
        ImportError: Triton is not installed.
    """
    from . import portable  # noqa: F401  registers the steps

    lightint = getattr(torch.ops, ops.NAMESPACE)
    return {
        lightint.sparse_attention.default: _sparse,
        lightint.sparse_attention_segments.default: _sparse_segments,
        lightint.sparse_attention_prepared.default: _sparse_prepared,
        lightint.sparse_attention_masked.default: _sparse_masked,
        lightint.pool_tiles.default: _pool,
        lightint.select_blocks.default: _select,
        lightint.block_sparse_attention.default: _block,
        lightint.block_sparse_attention_segments.default: _block_segments,
        lightint.mixed_linear.default: _mixed,
    }


def _sparse(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **more: Any) -> Tensor:
    return _steps(query, [key], [value], ContextPools(), Settings(*rest, **more))


def _sparse_segments(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], *rest: Any, **more: Any
) -> Tensor:
    return _steps(query, keys, values, ContextPools(), Settings(*rest, **more))


def _sparse_prepared(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], context_pool: Tensor, *rest: Any, **more: Any
) -> Tensor:
    settings, pools = ops.cut_pools(context_pool, rest, **more)
    return _steps(query, keys, values, pools, settings)


def _sparse_masked(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], key_mask: Tensor, *rest: Any, **more: Any
) -> Tensor:
    from . import portable

    settings, pools = ops.masked_pools(rest, **more)
    layout, chosen = settings.layout, settings.policy.arguments(query)
    spans = split_spans(keys, layout), split_spans(values, layout)
    return run_masked(portable, query, *spans, key_mask, layout, chosen, pools, settings.skipped_means)


def _steps(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], pools: ContextPools, settings: Settings
) -> Tensor:
    from . import portable

    layout = settings.layout
    spans = split_spans(keys, layout), split_spans(values, layout)
    chosen = settings.policy.arguments(query)
    return run_steps(portable, query, *spans, layout, chosen, pools, settings.skipped_means)


def _pool(tokens: Tensor, grid: Sequence[int], tile: Sequence[int]) -> Tensor:
    from . import portable

    return portable.pool_spans([(tokens, (grid[0], grid[1], grid[2]))], (tile[0], tile[1], tile[2]))[0]


def _select(query_pool: Tensor, key_pools: Sequence[Tensor], *rest: Any, **more: Any) -> tuple[Tensor, Tensor]:
    from . import portable

    layout = Layout.of(rest[0], rest[1], rest[2])
    chosen = Policy(*rest[3:], **more).arguments(query_pool[..., :-1])
    found = portable.select_blocks(query_pool, key_pools, layout, **chosen)
    return found.lists, found.counts


def _block(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
    return _block_segments(query, [key], [value], *rest)


def _block_segments(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], *rest: Any) -> Tensor:
    from . import portable

    index, count, query_grid, key_grid, prefix, tile, scale = rest
    layout = Layout.of(query_grid, key_grid, tile, prefix)
    factor = default_scale(scale, query)
    return portable.attend(query, split_spans(keys, layout), split_spans(values, layout), index, count, layout, factor)


def _mixed(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    from .portable.mixed_linear import portable_linear_of_parts

    parts = [part.reshape(-1, input.shape[-1]) for part in mixed_linear.split(input)]
    return portable_linear_of_parts(parts, weight, bias).view(*input.shape[:-1], weight.shape[0])
