"""The sm_90 kernel as an implementation: portable pooling and selection, Gluon attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from . import hopper, portable
from .portable import attend_all as attend_all
from .portable import pool_spans as pool_spans
from .portable import select_blocks as select_blocks
from .portable.pipeline import Pipeline, fits
from .skipped import Means
from .spans import Spans, as_output
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
) -> Pipeline | Copying | None:
    """The bound launches of such calls; None where they cannot be bound.

    What descriptors cannot read where it is, such as some of the heads of several samples, is copied in front of them.
    """
    if policy["scale"] <= 0:
        return portable.bind(query, keys, values, layout, policy, pools=pools, parts=parts)
    copies = Copies(*(tuple(not hopper.expressible(part) for part in several) for several in ((query,), keys, values)))
    query, keys, values = copies.of(query, keys, values)
    if not fits(query, keys, values, layout):
        return None
    pipeline = Pipeline(query, keys, values, layout, policy, hopper.BoundAttention, pools=pools, parts=parts)
    return Copying(pipeline, copies) if copies.are_any else pipeline


class Copies(NamedTuple):
    """Which tensors of a call are copied: the query, and spans of keys and values."""

    query: tuple[bool, ...]
    keys: tuple[bool, ...]
    values: tuple[bool, ...]

    @property
    def are_any(self) -> bool:
        """Whether one is."""
        return any(map(any, self))

    def of(self, query: Tensor, keys: Spans, values: Spans) -> tuple[Tensor, Spans, Spans]:
        """The tensors, with copies in their places; a query keeps its memory order, which the output follows."""
        if self.query[0]:
            query = as_output(query, query)
        return query, _copied(keys, self.keys), _copied(values, self.values)


class Copying(NamedTuple):
    """A pipeline for copies of some of a call's tensors."""

    pipeline: Pipeline
    copies: Copies

    def __call__(self, query: Tensor, keys: Spans, values: Spans, pools: ContextPools) -> Tensor | None:
        """See :class:`Pipeline`."""
        return self.pipeline(*self.copies.of(query, keys, values), pools)


def _copied(spans: Spans, which: Sequence[bool]) -> Spans:
    """A span that stands in for others is copied once."""
    current = spans.current.contiguous() if which[2] else spans.current
    return Spans(
        *(
            current if span is spans.current else span.contiguous() if copy else span
            for span, copy in zip(spans, which, strict=True)
        )
    )
