"""The body of a branch: a graph that takes the branch's operands and returns fresh tensors."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Sequence

import torch
import torch.fx as fx

from lightint_compile.passes.step_cache.extrapolation import number

aten = torch.ops.aten


class Side:
    """Builds one side of a branch of ``root``; nodes of the root are named by themselves.

    Args:
        operands: the nodes of the root that the side takes, in order.
    """

    def __init__(self, root: fx.GraphModule, operands: Sequence[fx.Node]) -> None:
        self._root, self.graph = root, fx.Graph()
        self._made: dict[fx.Node, fx.Node] = {}
        for node in operands:
            placeholder = self._made[node] = self.graph.placeholder(node.name)
            placeholder.target = placeholder.name
            placeholder.meta["val"] = node.meta.get("val")

    def of(self, node: fx.Node) -> fx.Node:
        """This side's counterpart of a node of the root."""
        return self._made[node]

    def put(self, node: fx.Node, own: fx.Node) -> None:
        """Use ``own`` for a node of the root from now on."""
        self._made[node] = own

    def copy(self, nodes: Iterable[fx.Node]) -> None:
        """Take over ``nodes`` of the root, in order."""
        for node in nodes:
            copied = self._made[node] = self.graph.node_copy(node, self._made.__getitem__)
            copied.meta = copy.copy(node.meta)

    def clone(self, node: fx.Node) -> fx.Node:
        """A fresh tensor with the value of a node of the root."""
        own = self.graph.call_function(aten.clone.default, (self._made[node],))
        own.meta["val"] = node.meta["val"]
        return own

    def number(self, value: float, like: fx.Node) -> fx.Node:
        """``value`` as a tensor on the host."""
        return number(self.graph, value, like.meta["val"])

    def region(self, name: str, operands: Sequence[fx.Node], like: fx.Node) -> fx.Node:
        """The one result, like ``like``, of the root's region ``name`` on nodes of this side."""
        call = self.graph.call_module(name, tuple(operands))
        call.meta["val"] = (like.meta["val"],)
        result = self.graph.call_function(operator.getitem, (call, 0))
        result.meta["val"] = like.meta["val"]
        return result

    def finished(self, outputs: Sequence[fx.Node]) -> fx.GraphModule:
        """The body as a module; regions that it calls are those of the root."""
        self.graph.output(tuple(outputs))
        called = {str(node.target) for node in self.graph.nodes if node.op == "call_module"}
        side = fx.GraphModule({name: self._root.get_submodule(name) for name in called}, self.graph)
        side.meta["lightint"] = {"kind": "branch"}
        return side


def attributes_of(root: fx.GraphModule, names: Sequence[str], sides: Sequence[fx.GraphModule]) -> list[fx.Node]:
    """Nodes that name the bodies of a branch, which become submodules of ``root``."""
    attributes = []
    for name, side in zip(names, sides, strict=True):
        root.add_submodule(name, side)
        attributes.append(root.graph.get_attr(name))
        attributes[-1].meta["val"] = None
    return attributes
