"""Where a node comes from: the name of the captured node that it stands for, whatever passes have made of it since.

Names alone do not tell: a graph that is built anew (a region, a branch) may give a name that an erased node had.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.fx as fx

from lightint_compile.passes.ir.decision_points import is_outlined
from lightint_compile.passes.ir.program import Program

MADE_BY = "lightint"
"""The mark of a node that a pass made: ``pass``, ``rule``, ``from`` (the node it was made for) and ``origin``."""


CAPTURED = "captured"
"""The mark of a captured node: its name. Copies carry it on."""


def mark_captured(program: Program) -> None:
    """Say of every node of a program, before the first pass, that it was captured."""
    for node in program.graph.nodes:
        node.meta[CAPTURED] = node.name


def origin_of(node: fx.Node) -> str:
    """The name of the captured node that ``node`` is, or was made for; empty for one that stands for none."""
    return str(made_by(node).get("origin", node.meta.get(CAPTURED, "")))


def made_by(node: fx.Node) -> Mapping[str, Any]:
    """The mark of the pass that made ``node``; empty for a captured node."""
    mark: Mapping[str, Any] = node.meta.get(MADE_BY, {})
    return mark


class Removals:
    """Which pass erased which captured nodes, while the program is one graph.

    Attributes:
        by: the pass, by the name of the node.
    """

    def __init__(self, original: Program) -> None:
        self.by: dict[str, str] = {}
        self._left = {node.name for node in original.graph.nodes}

    def after(self, pass_name: str, program: Program) -> None:
        """Look at what a pass has left; outlining moves nodes, which removes none."""
        if is_outlined(program.graph_module, program.graph):
            return
        gone = self._left.difference(node.name for node in program.graph.nodes)
        self.by.update(dict.fromkeys(gone, pass_name))
        self._left -= gone
