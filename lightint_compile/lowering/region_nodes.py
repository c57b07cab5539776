"""New nodes of a region: calls, and sizes that may be symbols."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx


def call(graph: fx.Graph, target: Any, *args: Any, **named: Any) -> fx.Node:
    """A call at the end of the graph; its fake value is left for the compiler to find."""
    return graph.call_function(target, args, named)


def size_at(graph: fx.Graph, holder: fx.Node, axis: int, size: Any) -> Any:
    """The size of an axis of ``holder``: the number itself, or a node that reads it where ``size`` is a symbol."""
    return size if isinstance(size, int) else call(graph, torch.ops.aten.sym_size.int, holder, axis)
