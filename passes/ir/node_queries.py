"""Queries on nodes: operations that can move into a submodule, and those that stay in the root."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
import torch.fx as fx
from torch._ops import HigherOrderOperator

from lightint_compile.passes.ir.effects import is_pure, live_nodes
from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.ir.input_writes import reads_before
from lightint_compile.passes.ir.memory_sharing import alias_source, is_write
from lightint_compile.passes.ir.transfers import waits_for_copies

#: Mark on a node whose value is kept between calls; it says what the value changes with.
MEMO = "memo"

#: The mark's value on what changes with neither the latent nor the timestep of a program that is one denoising step.
STEPS = "steps"

#: The mark's value on what is made from weights alone.
WEIGHTS = "weights"

#: A number beside the mark: values of different numbers share no piece, so that the pieces of alike blocks are alike.
MEMO_PLACE = "memo_place"

#: A number on nodes that make up a sequence: those of different numbers are no copies of one another. Rounds that look
#: alike overlap, and none of them is a region.
SEQUENCE = "sequence"


def is_movable(node: fx.Node) -> bool:
    """Whether a node may live in a submodule: it computes tensors; control flow and writes are the driver's."""
    if is_write(node):
        return False
    if node.op != "call_function" or isinstance(node.target, HigherOrderOperator):
        return False
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        return is_movable(node.args[0])
    return not is_scalar(node)


def graph_of(node: fx.Node) -> fx.GraphModule | None:
    """The graph that ``node`` names for control flow to call; ``None`` for a value."""
    found: Any = node.graph.owning_module if node.op == "get_attr" else None
    for name in str(node.target).split(".") if found is not None else ():
        found = getattr(found, name, None)
    return found if isinstance(found, fx.GraphModule) else None


def is_control(node: fx.Node) -> bool:
    """Whether a node is the user's control flow, which a compiler can have whole: graphs of operators, no decisions."""
    if node.op != "call_function" or not isinstance(node.target, HigherOrderOperator):
        return False
    graphs = [graph for source in node.all_input_nodes if (graph := graph_of(source)) is not None]
    decides = any(inner.op == "call_module" for graph in graphs for inner in graph.graph.nodes)
    values = [source.meta.get("val") for source in node.all_input_nodes]
    return not decides and not any(isinstance(value, (torch.SymBool, torch.SymFloat)) for value in values)


def is_scalar(node: fx.Node) -> bool:
    """Whether a node's value is one number: a size, a condition on sizes, an item read from a tensor."""
    return isinstance(node.meta.get("val"), (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool))


def is_tuple(node: fx.Node) -> bool:
    """Whether a node's value is a tuple, which only ``getitem`` reads."""
    return isinstance(node.meta.get("val"), (tuple, list))


def is_element(node: fx.Node) -> bool:
    """Whether a node reads one value of a tuple."""
    return node.target is operator.getitem and isinstance(node.args[0], fx.Node) and is_tuple(node.args[0])


aten = torch.ops.aten

_LOOKUPS = {aten.index_select.default, aten.embedding.default, aten.gather.default, aten.index.Tensor}


def is_lookup(node: fx.Node) -> bool:
    """Whether a node makes or picks a value rather than computing one: a constant, a view, a row of a table."""
    return (
        node.target in _LOOKUPS or (alias_source(node) is not None and not is_write(node)) or not node.all_input_nodes
    )


def is_ordered(node: fx.Node) -> bool:
    """Whether a node must keep its place among its kind: it draws random numbers or has a side effect."""
    return node.op == "call_function" and not is_pure(node)


class Dependencies:
    """Who must run before whom: data, the order of random and side-effecting operations, what is between two writes.

    A write fences off what computes: an operation that raises leaves the inputs written to as far as the user's code
    had come. Views and sizes go anywhere that reads do, and what is kept between calls is not made in every call. Waits
    for exchanges by copies are in no order: each is for what it waits for.

    Attributes:
        order: every node of the graph that something depends on, in execution order.
        position: the inverse of ``order``.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.order = live_nodes(graph)
        self.position = {node: index for index, node in enumerate(self.order)}
        self._after: dict[fx.Node, fx.Node] = {}
        self._before: dict[fx.Node, fx.Node] = {}
        last: fx.Node | None = None
        for node in self.order:
            if is_ordered(node) and not waits_for_copies(node):
                if last is not None:
                    self._after[node], self._before[last] = last, node
                last = node
        self._fenced = _fences(self.order, reads_before(graph))
        self._fencing: dict[fx.Node, list[fx.Node]] = {}
        for node, awaited in self._fenced.items():
            for source in awaited:
                self._fencing.setdefault(source, []).append(node)
        self._awaited: dict[fx.Node, list[fx.Node]] = {}
        self._awaiting: dict[fx.Node, list[fx.Node]] = {}

    def beside_inputs(self, node: fx.Node) -> list[fx.Node]:
        """What ``node`` directly waits for on account of order alone; an input of it may be among them."""
        previous = self._after.get(node)
        return list(dict.fromkeys((*([] if previous is None else [previous]), *self._fenced.get(node, ()))))

    def before(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that ``node`` directly waits for."""
        found = self._awaited.get(node)
        if found is None:
            inputs, others = node.all_input_nodes, self.beside_inputs(node)
            found = self._awaited[node] = list(dict.fromkeys((*inputs, *others))) if others else inputs
        return found

    @cached_property
    def sources(self) -> list[list[int]]:
        """For each node of ``order`` the positions of those that it directly waits for."""
        return [[self.position[source] for source in self.before(node)] for node in self.order]

    def after(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that directly wait for ``node``."""
        found = self._awaiting.get(node)
        if found is None:
            found = self._awaiting[node] = self._followers(node)
        return found

    def _followers(self, node: fx.Node) -> list[fx.Node]:
        users = [user for user in node.users if user in self.position]
        following = self._before.get(node)
        others = [] if following is None else [following]
        others += self._fencing.get(node, ())
        return list(dict.fromkeys((*users, *others))) if others else users


def _fences(order: Iterable[fx.Node], reads: Mapping[fx.Node, Iterable[fx.Node]]) -> dict[fx.Node, list[fx.Node]]:
    """What each node waits for on account of writes to inputs: a write for all since the last one, others for that one.

    Args:
        reads: for each write what reads the contents that it replaces.
    """
    if not reads:
        return {}
    order = list(order)
    live, fences = set(order), dict[fx.Node, list[fx.Node]]()
    last, since = None, list[fx.Node]()
    for node in order:
        if is_write(node):
            fences[node] = [*since, *(reader for reader in reads[node] if reader in live)]
            last, since = node, []
        elif is_movable(node) and not node.meta.get(MEMO) and not is_element(node) and alias_source(node) is None:
            fences[node] = [] if last is None else [last]
            since.append(node)
    return fences


def with_sources(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """``nodes`` and everything they depend on."""
    return reached(nodes, lambda node: node.all_input_nodes)
