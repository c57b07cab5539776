"""Functions of a translated model: a region is one function however often it is called, and ours have their domain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lightint_compile.exporting.onnx_model.operators import DOMAIN, Kernel

if TYPE_CHECKING:
    import onnx_ir as ir

REGIONS = "lightint.regions"
"""The domain of regions."""

LIBRARY = "pkg.onnxscript"
"""What domains of the translator's own helpers begin with."""

_IDENTIFIER = "pkg.torch.ops.higher_order.invoke_subgraph.identifier"


def arrange(model: ir.Model, kernels: Mapping[str, Kernel], opset: int) -> None:
    """Give functions their names, and calls of one region one function; branches stay functions of their own.

    All of the model is of one ``opset``.
    """
    made: dict[str, ir.Function] = {}  # in the order of the model: what is called stands in front of its callers
    moved: dict[tuple[str, str, str], tuple[ir.Function, Kernel | None]] = {}
    for key, function in list(model.functions.items()):
        if function.domain.startswith(LIBRARY):
            made[f"library {key}"] = function
            continue
        identifier = function.metadata_props.get(_IDENTIFIER)
        kernel = kernels.get(identifier) if identifier else None
        del model.functions[key]
        if identifier is None or identifier not in made:
            _rename(function, identifier, kernel)
            made[identifier or f"branch {key}"] = function
        moved[key] = made[identifier or f"branch {key}"], kernel
    for function in made.values():
        model.functions[function.identifier()] = function
    for node in every_node(model):
        found = moved.get((node.domain, node.op_type, node.overload))
        if found is not None:
            _call(node, *found)
    holders: list[Any] = [model, *made.values()]
    for holder in holders:
        holder.opset_imports.clear()
        holder.opset_imports.update({"": opset, **dict.fromkeys((function.domain for function in made.values()), 1)})


def every_node(model: ir.Model) -> Iterator[ir.Node]:
    """All nodes, those of functions and of branches included."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _rename(function: ir.Function, identifier: str | None, kernel: Kernel | None) -> None:
    import onnx_ir as ir

    if kernel is not None:
        function.domain, function.name = DOMAIN, kernel.name
        for name, value in kernel.attributes.items():
            function.attributes[name] = ir.Attr(name, _kind(value), None)
        return
    function.domain = REGIONS
    if identifier is not None:
        function.name = identifier


def _call(node: ir.Node, function: ir.Function, kernel: Kernel | None) -> None:
    from onnx_ir import convenience

    node.domain, node.op_type = function.domain, function.name
    if kernel is not None:
        for attribute in convenience.convert_attributes(kernel.attributes):
            node.attributes[attribute.name] = attribute


def _kind(value: Any) -> ir.AttributeType:
    import onnx_ir as ir

    kinds = {int: ir.AttributeType.INT, float: ir.AttributeType.FLOAT}
    if isinstance(value, (list, tuple)):
        return ir.AttributeType.STRINGS if isinstance(value[0], str) else ir.AttributeType.INTS
    return kinds[type(value)]
