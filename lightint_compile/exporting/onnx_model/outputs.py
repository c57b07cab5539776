"""Outputs of a model: each is a value of its own, with the name of its place in the results."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def name_outputs(graph: ir.Graph, names: Sequence[str]) -> None:
    """Give the outputs of ``graph`` these names; weights and values inside that have one are renamed.

    A name that an input or an output before has is given with ``_`` behind it.
    """
    _separate(graph)
    given = {str(each.name) for each in graph.inputs}
    own: list[str] = []
    for name in names:
        own.append(_free(name, given))
        given.add(own[-1])
    inner = [each for each in _inner(graph) if each.name is not None]
    taken = {str(each.name) for each in inner} | given
    for value in inner:
        if value.name in given:
            value.name = _free(str(value.name), taken)
            taken.add(value.name)
    for value, name in zip(graph.outputs, own, strict=True):
        value.name = name


def _separate(graph: ir.Graph) -> None:
    """An ``Identity`` behind each output that is an input, a weight or an output before."""
    import onnx_ir as ir

    seen = set[ir.Value]()
    for place, value in enumerate(graph.outputs):
        if value.producer() is None or value in seen:
            node = ir.node("Identity", [value])
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            graph.append(node)
            graph.outputs[place] = node.outputs[0]
        seen.add(value)


def _inner(graph: ir.Graph) -> list[ir.Value]:
    """Weights and the values of all nodes, those of branches included, without the outputs."""
    values = [*graph.initializers.values(), *(each for node in graph.all_nodes() for each in node.outputs)]
    outputs = set(graph.outputs)
    return [each for each in values if each not in outputs]


def _free(name: str, taken: Container[str]) -> str:
    """``name``, with as many ``_`` behind it as make it new."""
    while name in taken:
        name += "_"
    return name
