"""The graphs that a node calls: a region, or the sides of a branch."""

from __future__ import annotations

from collections.abc import Iterator

import torch.fx as fx

from lightint_compile.passes.ir.node_queries import graph_of


def called_graphs(module: fx.GraphModule, node: fx.Node) -> Iterator[fx.GraphModule]:
    """Those that ``node`` of ``module`` runs, or may run."""
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        if isinstance(called, fx.GraphModule):
            yield called
    for source in node.all_input_nodes:
        graph = graph_of(source)
        if graph is not None:
            yield graph
