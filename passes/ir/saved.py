"""What a graph was, written down so that it can be made again: a pass that fails leaves nothing behind.

A copy of forty thousand nodes takes two seconds, and is needed only where a pass fails. Lists of what each node was
take a tenth of that.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, NamedTuple

import torch.fx as fx
import torch.utils._pytree as pytree
from torch.fx._lazy_graph_module import _LazyGraphModule

from lightint_compile.passes.ir.program import Program


class _Node(NamedTuple):
    """A node as it was. Its arguments are immutable and hold nodes of the graph, whatever these became."""

    node: fx.Node
    op: str
    name: str
    target: Any
    args: Any
    kwargs: Any
    type: Any
    meta: dict[str, Any]


class Output(NamedTuple):
    """A node that is returned: its name, what it is, and its fake value."""

    name: str
    op: str
    value: Any


class Interface(NamedTuple):
    """What a graph takes and returns: names of placeholders, and outputs, which may be constants as well."""

    inputs: list[str]
    outputs: list[Any]

    @classmethod
    def of(cls, graph: fx.Graph) -> Interface:
        """That of a graph as it is now."""
        returned = pytree.tree_leaves(graph.output_node().args[0])
        return cls(
            [node.name for node in graph.find_nodes(op="placeholder")],
            [Output(n.name, n.op, n.meta.get("val")) if isinstance(n, fx.Node) else n for n in returned],
        )


class Saved:
    """A program as it is now; the program may be edited meanwhile.

    Attributes:
        nodes: all nodes there are.
        interface: what it takes and returns.
    """

    def __init__(self, program: Program) -> None:
        graph, module = program.graph, program.graph_module
        written = [(n, n.op, n.name, n.target, n.args, n.kwargs, n.type, dict(n.meta)) for n in graph.nodes]
        self._nodes = list(map(_Node._make, written))
        self.nodes = frozenset(graph.nodes)
        self.interface = Interface.of(graph)
        called = {each.target for each in self._nodes if each.op in ("get_attr", "call_module")}
        self._attributes = {target: attrgetter(target)(module) for target in called}
        self._entries, self._module_meta, self._training = program.inputs, dict(module.meta), module.training

    def put_back(self, program: Program) -> None:
        """Make the program what it was."""
        graph = fx.Graph()
        made: dict[fx.Node, fx.Node] = {}
        for each in self._nodes:
            args, kwargs = fx.node.map_arg((each.args, each.kwargs), made.__getitem__)
            made[each.node] = graph.create_node(each.op, each.target, args, kwargs, each.name, each.type)
            made[each.node].meta = dict(each.meta)
        module = _LazyGraphModule(self._attributes, graph)
        module.meta.update(self._module_meta)
        module.training = self._training
        program.graph_module, program.inputs = module, self._entries
        program.changed()
