"""The sm_90 kernel as an implementation: portable pooling and selection, Gluon attention."""

from __future__ import annotations

from torch import Tensor

from . import hopper, portable
from .portable import pool_spans as pool_spans
from .portable import select_blocks as select_blocks
from .spans import Spans
from .tiles import Layout


def attend(
    query: Tensor, keys: Spans, values: Spans, index: Tensor, count: Tensor, layout: Layout, scale: float
) -> Tensor:
    """Same contract as :func:`reference.attend`; the Gluon kernel takes its maximum before scaling, so scale > 0."""
    steps = hopper if scale > 0 else portable
    return steps.attend(query, keys, values, index, count, layout, scale)
