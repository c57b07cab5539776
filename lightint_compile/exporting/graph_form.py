"""A program's graph as files hold it: regions put in their place, or called many times; branches with their bodies.

Regions exist to be compiled, or written, once. A format that has no functions gets one flat graph.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree

from lightint_compile.errors import ExportError, told
from lightint_compile.kernels.ops import NAMESPACE
from lightint_compile.passes.ir.decision_points import is_region_call
from lightint_compile.passes.ir.memory_sharing import memory_of
from lightint_compile.passes.ir.program import fake_mode_of

KEPT = ("val", "stack_trace", "nn_module_stack", "unbacked_bindings")
"""What a file keeps of a node: its value, where in the user's source it came from, sizes that only running tells."""

NUMBERS = (int, float)
"""Python's numbers that tensors hold; truth values are among them."""

CALL: Any = torch.ops.higher_order.invoke_subgraph
"""The call of a region: ``(graph, identifier, *operands)``; calls with one identifier call one graph."""


def flat(root: fx.GraphModule) -> fx.GraphModule:
    """The graph with regions in the place of their calls; bodies of branches stay graphs of their own."""
    return _Copy(root, inline=True).made()


def with_functions(root: fx.GraphModule) -> fx.GraphModule:
    """The graph with regions as functions that it calls, by the names that the root gives them."""
    return _Copy(root, inline=False).made()


def stay_sparse(module: torch.nn.Module) -> None:
    """Ask no cost model in what a file computes: it does not know its device, and a rewritten site stays sparse."""
    for each in module.modules():
        for node in each.graph.nodes if isinstance(each, fx.GraphModule) else ():
            if is_ours(node) and "min_tokens" in (names := [a.name for a in node.target._schema.arguments]):
                given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
                if given.get("min_tokens") is None:
                    node.args = node.args[: names.index("min_tokens")]
                    node.kwargs = {name: value for name, value in given.items() if name not in names[: len(node.args)]}
                    node.kwargs = {**node.kwargs, "min_tokens": 0}


def is_ours(node: fx.Node) -> bool:
    """Whether a node calls an operator of lightint."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == NAMESPACE


def with_tensor_results(module: fx.GraphModule) -> fx.GraphModule:
    """Results that are numbers as scalar tensors, and ``None`` for all else that no node computes.

    Raises:
        ExportError: a number is too large for a tensor.
    """
    output = module.graph.output_node()
    with module.graph.inserting_before(output), fake_mode_of(module.graph.nodes):
        output.args = (pytree.tree_map(lambda value: _tensor_result(module.graph, value), output.args[0]),)
    module.recompile()
    return module


def _tensor_result(graph: fx.Graph, value: Any) -> fx.Node | None:
    if isinstance(value, fx.Node):
        return value
    if not isinstance(value, NUMBERS):
        return None
    try:
        dtype = torch.tensor(value).dtype
    except (RuntimeError, ValueError) as error:
        why, fix = f"{value}: {told(error)}", "return it as a float, or leave it out"
        raise ExportError("a number among the results has no tensor form", where="results", why=why, fix=fix) from error
    made = graph.call_function(torch.ops.aten.full.default, ([], value), {"dtype": dtype})
    made.meta["val"] = torch.full([], value, dtype=dtype)
    return made


def unshare_operands(module: fx.GraphModule) -> fx.GraphModule:
    """Copies for operands of branches that are views of one memory: formats that trace the graph again refuse them."""
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.higher_order.cond):
        operands, owners = list(node.args[3]), set[fx.Node]()
        for place, operand in enumerate(operands):
            owner = memory_of(operand) if isinstance(operand, fx.Node) else None
            if owner in owners:
                with module.graph.inserting_before(node):
                    operands[place] = module.graph.call_function(torch.ops.aten.clone.default, (operand,))
                operands[place].meta = dict(operand.meta)
            owners |= {owner} if owner is not None else set()
        node.args = (*node.args[:3], tuple(operands))
    module.recompile()
    return module


class _Copy:
    """Copies one graph and those below it; nothing of the original is changed."""

    def __init__(self, root: fx.GraphModule, inline: bool) -> None:
        self._root, self._inline = root, inline
        self._graph, self._held = fx.Graph(), dict[str, Any]()
        self._attributes: dict[int, fx.Node] = {}

    def made(self) -> fx.GraphModule:
        outputs = self._copy(self._root, self._placeholder)
        self._graph.output(outputs)
        holder = torch.nn.Module()
        for name, value in self._held.items():
            setattr(holder, name, value)
        return fx.GraphModule(holder, self._graph)

    def _placeholder(self, node: fx.Node) -> fx.Node:
        return self._kept(self._graph.node_copy(node), node)

    def _copy(self, module: fx.GraphModule, given: Callable[[fx.Node], Any]) -> Any:
        """The outputs of ``module``, whose nodes are copied; ``given`` stands for its inputs."""
        made: dict[fx.Node, Any] = {}

        def own(value: Any) -> Any:
            return fx.map_arg(value, made.__getitem__)

        for node in module.graph.nodes:
            if node.op == "output":
                return own(node.args[0])
            if node.op == "placeholder":
                made[node] = given(node)
            elif node.op == "get_attr":
                value = operator.attrgetter(str(node.target))(module)
                made[node] = self._attribute(str(node.target), value, node)
            elif is_region_call(module, node):
                made[node] = self._call(module.get_submodule(str(node.target)), node, own(node.args))
            elif node.target is operator.getitem and isinstance(made.get(node.args[0]), tuple):
                made[node] = made[node.args[0]][node.args[1]]
            else:
                made[node] = self._kept(self._graph.node_copy(node, made.__getitem__), node)
        raise AssertionError("a graph without an output")

    def _call(self, region: Any, node: fx.Node, operands: tuple[Any, ...]) -> Any:
        if self._inline:
            inputs = dict(zip(region.graph.find_nodes(op="placeholder"), operands, strict=True))
            return tuple(self._copy(region, inputs.__getitem__))
        name = str(node.target)
        attribute = self._attribute(name, region, None)
        return self._kept(self._graph.call_function(CALL, (attribute, name, *operands)), node)

    def _attribute(self, name: str, value: Any, node: fx.Node | None) -> fx.Node:
        """The node that reads ``value``; another value of the same name gets a name of its own."""
        if id(value) in self._attributes:
            return self._attributes[id(value)]
        name = name.replace(".", "_")
        while name in self._held:
            name += "_"
        self._held[name] = _Copy(value, self._inline).made() if isinstance(value, fx.GraphModule) else value
        made = self._attributes[id(value)] = self._graph.get_attr(name)
        return made if node is None else self._kept(made, node)

    @staticmethod
    def _kept(made: fx.Node, node: fx.Node) -> fx.Node:
        made.meta = {key: node.meta[key] for key in KEPT if key in node.meta}
        return made
