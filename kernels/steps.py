"""Pool, select and attend with one implementation, step by step."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .dispatch import Implementation
from .skipped import Means, joined
from .spans import Spans
from .tiles import Layout


class ContextPools(NamedTuple):
    """What of the context was pooled beforehand: keys by tiles, keys and values by the parts that have means."""

    key: Tensor | None = None
    key_means: Tensor | None = None
    value_means: Tensor | None = None

    @property
    def have_means(self) -> bool:
        """Whether there are means of both."""
        return self.key_means is not None and self.value_means is not None


class Text(NamedTuple):
    """Tokens that every query reads, each with a number that is added to its logit.

    Attributes:
        key, value: ``[batch, key_heads, tokens, head_dim]``.
        bias: ``[batch or 1, tokens]``; minus infinity leaves a token out.
    """

    key: Tensor
    value: Tensor
    bias: Tensor

    def joined(self, means: Means | None, counts: Tensor) -> Means:
        """The text behind the means that stand for skipped blocks; ``counts`` are those of the lists."""
        offsets = self.bias[:, None, None].expand(*counts.shape, -1)
        if means is None:
            return Means(self.key.contiguous(), self.value.contiguous(), offsets.contiguous())
        pairs = zip(means, (self.key, self.value, offsets), (2, 2, 3), strict=True)
        return Means(*(torch.cat([mean, text], axis) for mean, text, axis in pairs))


def run_steps(
    steps: Implementation,
    query: Tensor,
    keys: Spans,
    values: Spans,
    layout: Layout,
    chosen: dict[str, Any],
    pools: ContextPools,
    parts: int,
    text: Text | None = None,
) -> Tensor:
    """Attention over the blocks that ``chosen`` keeps (``settings.Policy``), and means of ``parts`` of the others.

    ``text`` is what else is read, beside the prefix.
    """
    finer = layout.finer(parts) if parts else None
    query_pool, *key_pools = _pooled(steps, keys, layout, pools.key, query)
    selection = steps.select_blocks(query_pool, key_pools, layout, **chosen, finer=finer)
    means = None
    if finer is not None and selection.offsets is not None:
        if finer != layout or pools.key_means is not None:
            key_pools = _pooled(steps, keys, finer, pools.key_means)
        value_pools = _pooled(steps, values, finer, pools.value_means)
        means = Means(joined(key_pools, query.dtype), joined(value_pools, query.dtype), selection.offsets)
    if text is not None and text.key.shape[2]:
        means = text.joined(means, selection.counts)
    lists = selection.lists, selection.counts
    return steps.attend(query, keys, values, *lists, layout, chosen["scale"], means)


def _pooled(
    steps: Implementation, spans: Spans, layout: Layout, context_pool: Tensor | None, query: Tensor | None = None
) -> list[Tensor]:
    """Pools of the query if there is one, of the context if there is one, and of the current frames."""
    visual = [(spans.current, layout.current_grid)]
    if layout.frames[0] and context_pool is None:
        visual.insert(0, (spans.context, layout.context_grid))
    if query is not None:
        visual.insert(0, (query, layout.current_grid))
    pools = steps.pool_spans(visual, layout.tile)
    if context_pool is not None:
        pools.insert(len(pools) - 1, context_pool)
    return pools


def default_scale(scale: float | None, query: Tensor) -> float:
    """``scale``, or ``head_dim ** -0.5``."""
    return float(query.shape[-1]) ** -0.5 if scale is None else scale
