"""Stretches of a graph under ``vmap``, replaced by what they do to tensors; everything around them stays as it is.

Masks of blocks, and masks that transformers makes, are functions of two positions under two ``vmap``s: a stretch of
index arithmetic in front of an attention. A trace of the whole graph below the transforms would take attention, norms
and convolutions apart for its sake. So only the stretch is traced: from where the first level is switched on to where
the last one is off again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch.fx as fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.traceback import preserve_node_meta

from lightint_compile.capture.alone import traced_alone

Nodes = Sequence[fx.Node]

_VALUE = "example_value"


def is_switch(node: fx.Node) -> bool:
    """Whether a node belongs to a ``torch.func`` transform: it switches a level, or wraps a tensor for one."""
    module = str(getattr(node.target, "__module__", None) or "")
    return node.op == "call_function" and "functorch" in module


def stretches_of(graph: fx.Graph) -> list[list[fx.Node]]:
    """The nodes from a first level switched on to the last one off.

    None where there are other transforms as well, or where a value that a stretch reads is not recorded.
    """
    stretches: list[list[fx.Node]] = []
    depth = 0
    for node in graph.nodes:
        name = _name(node)
        if is_switch(node) and not _is_of_vmap(name):
            return []
        if depth == 0 and name == "_vmap_increment_nesting":
            stretches.append([])
        depth += name == "_vmap_increment_nesting"
        if depth:
            stretches[-1].append(node)
        depth -= name == "_vmap_decrement_nesting"
    known = all(_VALUE in node.meta for stretch in stretches for node in _read_from_outside(stretch))
    return stretches if known else []


def without_stretches(graph_module: fx.GraphModule, stretches: Sequence[Nodes], mode: FakeTensorMode) -> fx.GraphModule:
    """The same function of the same inputs, with every stretch traced; in the caller's grad mode."""
    replacing = _Replacing(graph_module, mode)
    replacing.run({stretch[-1]: stretch for stretch in stretches})
    return fx.GraphModule(replacing.attributes, replacing.graph)


@dataclass
class _Replacing:
    """The graph that is being made: ``made`` has the new node of every old one, ``attributes`` what nodes refer to."""

    graph_module: fx.GraphModule
    mode: FakeTensorMode
    graph: fx.Graph = field(default_factory=fx.Graph)
    made: dict[fx.Node, fx.Node] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)

    def run(self, ends: dict[fx.Node, Nodes]) -> None:
        """Copy every node outside of a stretch, and make a stretch where it ends."""
        inside = {node for stretch in ends.values() for node in stretch}
        for node in self.graph_module.graph.nodes:
            if node in ends:
                self._trace(ends[node])
            elif node not in inside and not is_switch(node):
                self._copy(node, self.made, self.graph, self.attributes)

    def _trace(self, stretch: Nodes) -> None:
        given, results = list(_read_from_outside(stretch)), _read_outside(stretch)
        traced = self._traced(stretch, given, results)
        places = dict(zip(traced.graph.find_nodes(op="placeholder"), (self.made[node] for node in given), strict=True))
        for node in traced.graph.nodes:
            if node.op == "get_attr":
                places[node] = self._constant(traced, node)
            elif node.op == "output":
                self.made.update(zip(results, (places[each] for each in node.args[0]), strict=True))  # type: ignore[union-attr, arg-type, index]
            elif node.op != "placeholder":
                places[node] = self.graph.node_copy(node, places.__getitem__)
                places[node].meta[_VALUE] = node.meta.get("val")

    def _traced(self, stretch: Nodes, given: Nodes, results: Nodes) -> fx.GraphModule:
        """The stretch as a graph of what reaches ATen."""
        graph, inner, attributes = fx.Graph(), dict[fx.Node, fx.Node](), dict[str, Any]()
        for node in given:
            inner[node] = graph.placeholder(node.name)
        for node in stretch:
            for source in node.all_input_nodes:
                if source not in inner:  # an attribute, whose node is in front of the stretch
                    self._copy(source, inner, graph, attributes)
            self._copy(node, inner, graph, attributes)
        graph.output(tuple(inner[node] for node in results))
        run = fx.Interpreter(fx.GraphModule(attributes, graph)).run
        with preserve_node_meta(), self.mode:
            return traced_alone(run, [node.meta[_VALUE] for node in given])

    def _copy(self, node: fx.Node, made: dict[fx.Node, fx.Node], graph: fx.Graph, attributes: dict[str, Any]) -> None:
        if node.op in ("get_attr", "call_module"):
            attributes[str(node.target)] = attrgetter(str(node.target))(self.graph_module)
        made[node] = graph.node_copy(node, made.__getitem__)

    def _constant(self, traced: fx.GraphModule, node: fx.Node) -> fx.Node:
        """A tensor that the trace found as a constant, under a name of its own."""
        name = f"vmapped_{len(self.attributes)}"
        while name in self.attributes or hasattr(self.graph_module, name):
            name += "_"
        self.attributes[name] = attrgetter(str(node.target))(traced)
        made = self.graph.get_attr(name)
        made.meta[_VALUE] = node.meta.get("val")
        return made


def _read_from_outside(stretch: Nodes) -> Iterator[fx.Node]:
    """What a stretch is given, in order; attributes belong to it."""
    inside, seen = set(stretch), set[fx.Node]()
    for node in stretch:
        for source in node.all_input_nodes:
            if source not in inside and source not in seen and source.op != "get_attr":
                seen.add(source)
                yield source


def _read_outside(stretch: Nodes) -> list[fx.Node]:
    inside = set(stretch)
    return [node for node in stretch if not inside.issuperset(node.users)]


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", "")) if is_switch(node) else ""


def _is_of_vmap(name: str) -> bool:
    return name.startswith("_vmap_") or name in ("_add_batch_dim", "_remove_batch_dim", "lazy_load_decompositions")
