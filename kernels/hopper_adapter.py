"""The sm_90 kernel as an implementation: portable pooling and selection, Gluon attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import hopper, portable
from .portable import attend_all as attend_all
from .portable import pool_spans as pool_spans
from .portable import select_blocks as select_blocks
from .portable.pipeline import Pipeline, fits
from .skipped import Means
from .spans import Spans
from .steps import ContextPools
from .tiles import Layout


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
    """Same contract as :func:`reference.attend`; the Gluon kernel takes its maximum before scaling, so scale > 0."""
    steps = hopper if scale > 0 else portable
    return steps.attend(query, keys, values, index, count, layout, scale, means)


def bind(
    query: Tensor,
    keys: Spans,
    values: Spans,
    layout: Layout,
    policy: dict[str, Any],
    *,
    pools: ContextPools,
    parts: int,
) -> Pipeline | None:
    """The bound launches of such calls; None where they cannot be bound."""
    if policy["scale"] <= 0:
        return portable.bind(query, keys, values, layout, policy, pools=pools, parts=parts)
    if not fits(query, keys, values, layout) or not hopper.expressible(query, keys, values):
        return None
    return Pipeline(query, keys, values, layout, policy, hopper.BoundAttention, pools=pools, parts=parts)
