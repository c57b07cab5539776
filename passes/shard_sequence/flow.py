"""What is known of a program whose tokens are dealt out, and why they cannot be."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.fx as fx

from lightint_compile.passes.analysis.axes.factors import Layout
from lightint_compile.passes.analysis.axes.plans import Plan
from lightint_compile.passes.ir.program import tensor_of
from lightint_compile.passes.shard_sequence.places import whole
from lightint_compile.passes.shard_sequence.ring import Ring


class Obstacle(Exception):  # noqa: N818 - it says what happened, and is always caught
    """Tokens cannot be dealt out.

    Attributes:
        node: where that was noticed.
        reason: why.
        hint: the smallest change that would help; empty where there is none.
    """

    def __init__(self, node: fx.Node, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.node, self.reason, self.hint = node, reason, hint


@dataclass
class Flow:
    """How a graph runs on the ranks' parts.

    Attributes:
        known: of every node whose results ranks have parts of, the layouts of its results.
        reads: of every call the operands that it reads in another layout than they are made in, and in which.
        plans: how a call is made on parts.
        entries: where tokens are dealt out: every rank has all of such a value, and what follows reads a part.
        sites: attention of which a rank computes its tokens or its heads.
        rings: those of them whose keys go around the ranks.
        exits: values that are whole again.
    """

    known: dict[fx.Node, tuple[Layout, ...]] = field(default_factory=dict)
    reads: dict[fx.Node, dict[fx.Node, Layout]] = field(default_factory=dict)
    plans: dict[fx.Node, Plan] = field(default_factory=dict)
    entries: set[fx.Node] = field(default_factory=set)
    sites: list[fx.Node] = field(default_factory=list)
    rings: dict[fx.Node, Ring] = field(default_factory=dict)
    exits: list[fx.Node] = field(default_factory=list)

    def made(self, node: fx.Node) -> Layout:
        """The layout in which a node's value is made: an entry is made whole."""
        return whole(node) if node in self.entries else self.layout(node)

    def layout(self, node: fx.Node) -> Layout:
        """The layout of a node's value; that of a number is empty."""
        if node in self.known:
            return self.known[node][0]
        return whole(node) if tensor_of(node) is not None else ()
