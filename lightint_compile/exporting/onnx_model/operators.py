"""Our operators as functions of the domain ``ai.lightint``: nodes with settings, and bodies of standard operators.

An importer that has a kernel for ``ai.lightint::SparseAttention`` reads the attributes and runs it; every other one
runs the body, which is :mod:`lightint_compile.kernels.aten_form`. Attributes do not enter a body: nodes with other
settings, or other forms of operands, call another function: ``SparseAttention``, ``SparseAttention_1`` and so on.
onnxruntime does not find overloads of one name inside of functions.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree

from lightint_compile.capture.alone import traced_alone
from lightint_compile.errors import ExportError
from lightint_compile.exporting.graph_form import CALL, is_ours
from lightint_compile.kernels import ops
from lightint_compile.kernels.aten_form import aten_table
from lightint_compile.passes.ir.program import fake_mode_of
from lightint_compile.passes.ir.remarks import source_of

DOMAIN = "ai.lightint"
MARK = "lightint."
"""What identifiers of these functions begin with; regions have names without a dot."""

_NAMES = {
    "sparse_attention": "SparseAttention",
    "sparse_attention_segments": "SparseAttention",
    "sparse_attention_prepared": "SparseAttention",
    "sparse_attention_masked": "SparseAttention",
    "pool_tiles": "PoolTiles",
    "mixed_linear": "MixedLinear",
}


@dataclass(frozen=True)
class Kernel:
    """One function.

    Attributes:
        name: of the function in :data:`DOMAIN`: the operator's, with a number behind it from the second body on.
        attributes: the settings of the nodes that call it.
    """

    name: str
    attributes: dict[str, Any]


@dataclass
class Kernels:
    """The functions that a graph calls, by identifier; calls that are alike share one."""

    found: dict[str, Kernel] = field(default_factory=dict)
    _bodies: dict[Any, tuple[str, fx.GraphModule]] = field(default_factory=dict)

    def write_into(self, module: fx.GraphModule) -> None:
        """Replace every operator of ours in ``module`` and below by a call of its function.

        Raises:
            ExportError: an operator has no such form.
        """
        for child in list(module.children()):
            if isinstance(child, fx.GraphModule):
                self.write_into(child)
        for node in list(module.graph.nodes):
            if is_ours(node):
                self._replace(module, node)
        module.recompile()

    def _replace(self, module: fx.GraphModule, node: fx.Node) -> None:
        identifier, body = self._body(node)
        name = identifier.replace(".", "_")
        if not hasattr(module, name):
            module.add_submodule(name, body)
        with module.graph.inserting_before(node):
            call = module.graph.call_function(CALL, (module.graph.get_attr(name), identifier, *node.all_input_nodes))
            result = module.graph.call_function(operator.getitem, (call, 0))
        call.meta, result.meta = {**node.meta, "val": (node.meta["val"],)}, dict(node.meta)
        node.replace_all_uses_with(result, propagate_meta=False)
        module.graph.erase_node(node)

    def _body(self, node: fx.Node) -> tuple[str, fx.GraphModule]:
        """The identifier and the graph of what ``node`` computes, of its input nodes in order."""
        table = aten_table()
        if node.target not in table:
            raise ExportError("an operator has no ONNX form", where=source_of(node) or node.name, why=str(node.target))
        key = _key(node)
        if key not in self._bodies:
            identifier = f"{MARK}{len(self._bodies)}"
            self._bodies[key] = identifier, _traced(node, table[node.target])  # type: ignore[index]
            self.found[identifier] = _kernel(
                node, sum(each.name.partition("_")[0] == _name(node) for each in self.found.values())
            )
        return self._bodies[key]


def _traced(node: fx.Node, form: Any) -> fx.GraphModule:
    flat, spec = pytree.tree_flatten((node.args, dict(node.kwargs)))
    places = {each: number for number, each in enumerate(node.all_input_nodes)}

    def compute(*operands: Any) -> tuple[Any]:
        values = [operands[places[value]] if isinstance(value, fx.Node) else value for value in flat]
        args, kwargs = pytree.tree_unflatten(values, spec)
        return (form(*args, **kwargs),)

    operands = [each.meta["val"] for each in node.all_input_nodes]
    with fake_mode_of([node]), torch.no_grad():
        traced = traced_alone(compute, operands, pre_dispatch=True)
    traced.graph.eliminate_dead_code()
    return traced


def _key(node: fx.Node) -> Any:
    """What tells functions apart: the operator, its settings, and the forms of its operands."""
    places = {each: number for number, each in enumerate(node.all_input_nodes)}
    flat, spec = pytree.tree_flatten((node.args, dict(node.kwargs)))
    values = tuple(("operand", places[value]) if isinstance(value, fx.Node) else repr(value) for value in flat)
    return (node.target, str(spec), values, tuple(_form(each.meta["val"]) for each in places))


def _form(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (tuple(map(str, value.shape)), tuple(map(str, value.stride())), value.dtype)
    return str(value)


def _name(node: fx.Node) -> str:
    assert isinstance(node.target, torch._ops.OpOverload)
    return _NAMES[node.target._schema.name.removeprefix(f"{ops.NAMESPACE}::")]


def _kernel(node: fx.Node, number: int) -> Kernel:
    assert isinstance(node.target, torch._ops.OpOverload)
    arguments = node.target._schema.arguments
    given = {each.name: value for each, value in zip(arguments, node.args, strict=False)} | dict(node.kwargs)
    every = {each.name: given.get(each.name, each.default_value) for each in arguments}
    attributes = {name: value for name, value in every.items() if _is_setting(value)}
    attributes["operands"] = [each for name, value in every.items() for each in _operands(name, value)]
    return Kernel(f"{_name(node)}_{number}" if number else _name(node), attributes)


def _operands(name: str, value: Any) -> list[str]:
    """What the inputs of the node are, in order, as far as ``value`` has any."""
    if isinstance(value, fx.Node):
        return [name]
    if isinstance(value, (list, tuple)):
        return [f"{name}.{number}" for number, each in enumerate(value) if isinstance(each, fx.Node)]
    return []


def _is_setting(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(isinstance(each, int) for each in value)
    return isinstance(value, (int, float)) and not isinstance(value, bool)
