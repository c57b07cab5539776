"""What a rule says of an operation, and what the rules of both kinds of operations share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.fx as fx

from lightint_compile.passes.analysis.batch_elements.axes import (
    Axis,
    Kind,
    Layout,
    batch,
    batches,
    count,
    extent,
    is_same,
    place_of,
    plain,
)
from lightint_compile.passes.ir.program import tensor_of
from lightint_compile.passes.ir.sizes import quotient


class Several(tuple[Layout, ...]):
    """The layouts of an operation with several results."""


@dataclass(frozen=True)
class Rowwise:
    """An operation whose results for one element are made from that element's operands alone.

    Attributes:
        layout: of the result; one for each of several results.
        operands: the layouts in which operands are read that are the same for all elements along some axis.
        args: the arguments for one element, as far as they are not the node's own.
    """

    layout: Layout | Several
    operands: Mapping[fx.Node, Layout] = field(default_factory=dict)
    args: tuple[Any, ...] | None = None

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """Those of all results."""
        return self.layout if isinstance(self.layout, Several) else (self.layout,)


@dataclass(frozen=True)
class Mixes:
    """Why an operation cannot be done for one element alone."""

    reason: str


Layouts = Callable[[fx.Node], Layout]
"""The layout of a tensor node."""

Rule = Callable[[fx.Node, Layouts], Rowwise | Mixes]


def joined(entries: Iterable[Axis]) -> Axis | None:
    """The axis that operands share once broadcast together; ``None`` where elements would meet other values."""
    known = [entry for entry in entries if extent(entry) != 1]
    leading = next((entry for entry in known if batches(entry)), None)
    if leading is None:
        same = known and all(map(is_same, known))
        return known[0] if same else plain(extent(known[0])) if known else ()
    wanted = skeleton(leading)
    if all(skeleton(entry) == wanted if batches(entry) else is_constant_over(entry, wanted) for entry in known):
        return wanted
    return None


def skeleton(of: Axis) -> Axis:
    """An axis with a batch, whatever else is known of it."""
    place = place_of((of,))
    assert place is not None
    size = next(part.size for part in of if part.kind is Kind.BATCH)
    return batch(size, place.outer, place.inner)


def is_constant_over(of: Axis, wanted: Axis) -> bool:
    """Whether the values along an axis of the same extent are those of each element alike, at the front of it."""
    place = place_of((wanted,))
    assert place is not None
    if is_same(of):
        return True
    size = next(part.size for part in wanted if part.kind is Kind.BATCH)
    outer = of[0].size if of and of[0].kind is Kind.SAME else 1
    return place.outer == 1 and quotient(outer, size) is not None


def broadcast(layouts: Sequence[Layout], rank: int) -> Layout | None:
    """The layout of operands broadcast together, axes counted from the back."""
    axes: list[Axis] = []
    for back in range(rank, 0, -1):
        entry = joined(layout[-back] for layout in layouts if len(layout) >= back)
        if entry is None:
            return None
        axes.append(entry)
    return tuple(axes)


def fitted(layout: Layout, result: Layout) -> Layout:
    """What an operand is read as when it is broadcast to ``result``: an axis of one stays."""
    wanted = result[len(result) - len(layout) :]
    return tuple(
        want if batches(want) and extent(entry) != 1 else entry for entry, want in zip(layout, wanted, strict=True)
    )


def without_elements(nodes: Iterable[Any], of: Layouts) -> bool:
    """Whether operands belong to no element: weights, tables."""
    return not any(count(of(node)) for node in nodes if tensor_of(node) is not None)


MEETS = Mixes("elements of the batch meet one another, or values that belong to no element")
