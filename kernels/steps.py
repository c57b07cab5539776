"""Pool, select and attend with one implementation, step by step, and the settings that selection takes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .dispatch import Implementation
from .spans import Spans
from .tiles import Layout


def run_steps(
    steps: Implementation,
    query: Tensor,
    keys: Spans,
    values: Spans,
    layout: Layout,
    chosen: dict[str, Any],
    context_pool: Tensor | None = None,
) -> Tensor:
    """Attention over the blocks that ``chosen`` (see :func:`policy`) keeps.

    ``context_pool`` are the pooled context keys where the caller has them.
    """
    visual = [(query, layout.current_grid), (keys.current, layout.current_grid)]
    pool_here = bool(layout.frames[0]) and context_pool is None
    if pool_here:
        visual.insert(1, (keys.context, layout.context_grid))
    query_pool, *key_pools = steps.pool_spans(visual, layout.tile)
    if context_pool is not None:
        key_pools.insert(0, context_pool)
    index, count = steps.select_blocks(query_pool, key_pools, layout, **chosen)
    return steps.attend(query, keys, values, index, count, layout, chosen["scale"])


def policy(
    query: Tensor, density: float, coverage: float | None, protect_frames: int, neighbours: int, scale: float | None
) -> dict[str, Any]:
    """The keyword arguments of an implementation's ``select_blocks``."""
    return {
        "density": density,
        "coverage": coverage,
        "protect_frames": protect_frames,
        "neighbours": neighbours,
        "scale": default_scale(scale, query),
    }


def default_scale(scale: float | None, query: Tensor) -> float:
    """``scale``, or ``head_dim ** -0.5``."""
    return float(query.shape[-1]) ** -0.5 if scale is None else scale
