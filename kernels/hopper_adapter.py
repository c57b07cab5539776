"""The Gluon kernel as an implementation: portable pooling and selection, Hopper attention."""

from __future__ import annotations

from torch import Tensor

from . import hopper
from .portable import pool_spans, select_blocks
from .spans import Spans
from .tiles import Layout

__all__ = ["attend", "pool_spans", "select_blocks"]


def attend(
    query: Tensor, keys: Spans, values: Spans, index: Tensor, count: Tensor, layout: Layout, scale: float
) -> Tensor:
    """Same contract as :func:`reference.attend`."""
    present = [i for i, key in enumerate(keys) if key.shape[2]]
    return hopper.block_sparse_attention(
        query,
        [keys[i] for i in present],
        [values[i] for i in present],
        index,
        count,
        query_grid=layout.current_grid,
        key_grid=(sum(layout.frames), layout.height, layout.width),
        prefix=layout.prefix,
        tile=layout.tile,
        scale=scale,
    )
