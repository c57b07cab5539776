"""What an operation does to repetition: the vocabulary of the rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch.fx as fx

from lightint_compile.passes.analysis.axes.factors import Layout
from lightint_compile.passes.ir.fake_values import Size


class Emitter(Protocol):
    """Makes the nodes of a small computation, at the place of the node it stands for."""

    def small(self, node: fx.Node) -> fx.Node:
        """The operand ``node`` in the layout that the plan asked for."""
        ...

    def size(self, size: Size) -> Any:
        """``size`` as a graph argument: an integer, or a node whose value it is."""
        ...

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A new node."""
        ...


@dataclass(frozen=True)
class Plan:
    """How to compute a node on the small tensors.

    Attributes:
        result: the layout of the result; for an operation with several results, one layout that all of them have except
            along ``parts``.
        operands: the layout in which each tensor operand is needed.
        computes: whether the node does arithmetic; a view or a repetition alone is not worth a rewrite.
        arguments: positional arguments of the small call, when they are not the node's own with operands replaced.
        target: what the small call calls, when it is not the node's own target: a small tensor may need a copy where
            the large one was a view.
        forwards: the operand whose small tensor is the small result; such a node is itself a repetition.
    """

    result: Layout
    operands: Mapping[fx.Node, Layout]
    computes: bool = True
    arguments: Callable[[Emitter], Sequence[Any]] | None = None
    forwards: fx.Node | None = None
    target: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Blocked:
    """Why repetition ends at a node. ``mixes`` is the ordinary end: an operand that differs in every row."""

    reason: str
    mixes: bool = False


#: The layout of a node's value; the layout in which nothing repeats when none is known.
Layouts = Callable[[fx.Node], Layout]

MIXES = Blocked("another operand differs in every row", mixes=True)
