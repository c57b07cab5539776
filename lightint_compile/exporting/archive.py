"""A rewritten program back as an ``ExportedProgram``: what every format is written from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree
from torch.export import ExportedProgram, ModuleCallEntry
from torch.export.graph_signature import (
    ConstantArgument,
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)

from lightint_compile.exporting.open_decisions import Opened
from lightint_compile.exporting.results import plain_spec

REPORT_FILE = "lightint_report.json"
"""The report's name among the archive's extra files."""

RESULT, STATE = "result", "state"
"""Keys of the results of a program that decides: what the module returned, and what its caller needs further."""


def as_exported(
    opened: Opened, captured: ExportedProgram, graph: fx.GraphModule, values: Mapping[str, torch.Tensor]
) -> ExportedProgram:
    """``graph`` with the weights, calling convention and size ranges of the program it came from.

    Passes keep placeholders and outputs in order, so only names change. Results are plain containers, see ``results``.
    What the caller decides is given by name, and is among the results under :data:`STATE`.

    Args:
        graph: the graph of the opened program, as the format holds it.
        values: what is decided in the example call, by name.
    """
    signature = captured.graph_signature
    for spec, node in zip(signature.input_specs, _inputs(graph.graph), strict=False):
        if isinstance(spec.arg, ConstantArgument):
            node.meta["val"] = spec.arg.value
    return ExportedProgram(
        root=graph,
        graph=graph.graph,
        graph_signature=ExportGraphSignature(
            _input_specs(signature, graph.graph), _output_specs(signature, graph.graph)
        ),
        state_dict=captured.state_dict,
        range_constraints={**_ranges(graph.graph), **captured.range_constraints},
        module_call_graph=[_entry(captured.module_call_graph[0], opened)],
        example_inputs=_with_decisions(captured.example_inputs, values),
        constants=captured.constants,
        verifiers=[captured.verifier],
    )


def _input_specs(signature: ExportGraphSignature, graph: fx.Graph) -> list[InputSpec]:
    nodes = list(_inputs(graph))
    known = [_renamed(spec, node) for spec, node in zip(signature.input_specs, nodes, strict=False)]
    more = nodes[len(known) :]
    return [*known, *(InputSpec(InputKind.USER_INPUT, TensorArgument(node.name), None) for node in more)]


def _output_specs(signature: ExportGraphSignature, graph: fx.Graph) -> list[OutputSpec]:
    leaves = pytree.tree_leaves(graph.output_node().args[0])
    known = [_named(spec, out) for spec, out in zip(signature.output_specs, leaves, strict=False)]
    more = leaves[len(known) :]
    return [*known, *(OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None) for node in more)]


def _entry(entry: ModuleCallEntry, opened: Opened) -> ModuleCallEntry:
    """The calling convention: decisions are further keyword arguments, and results come beside the state."""
    assert entry.signature is not None
    taken = _structure(entry.signature.in_spec)
    if opened.inputs:
        taken = (taken[0], {**taken[1], **{each.name: 0 for each in opened.inputs}})
    names = [*(entry.signature.forward_arg_names or ()), *(each.name for each in opened.inputs)]
    signature = dataclasses.replace(
        entry.signature,
        in_spec=pytree.tree_structure(taken),
        out_spec=results_spec(entry.signature.out_spec, opened),
        forward_arg_names=names if entry.signature.forward_arg_names else None,
    )
    return dataclasses.replace(entry, signature=signature)


def results_spec(spec: pytree.TreeSpec, opened: Opened) -> pytree.TreeSpec:
    """The results of a file whose module returns ``spec``: plain containers, with the state beside them."""
    results = plain_spec(spec)
    if not opened.outputs:
        return results
    return pytree.tree_structure({RESULT: _structure(results), STATE: dict.fromkeys(opened.outputs, 0)})


def _structure(spec: pytree.TreeSpec) -> Any:
    return pytree.tree_unflatten([0] * spec.num_leaves, spec)


def _with_decisions(example: Any, values: Mapping[str, torch.Tensor]) -> Any:
    if example is None or not values:
        return example
    args, kwargs = example
    return args, {**kwargs, **values}


def _ranges(graph: fx.Graph) -> dict[Any, Any]:
    """The bounds of every size in a graph: also of those that no argument of the captured program has."""
    found: dict[Any, Any] = {}
    for node in graph.nodes:
        for value in pytree.tree_leaves(node.meta.get("val")):
            sizes: Any = value.shape if isinstance(value, torch.Tensor) else (value,)
            for size in (each for each in sizes if isinstance(each, torch.SymInt)):
                shapes: Any = size.node.shape_env
                known = shapes.var_to_range
                found |= {symbol: known[symbol] for symbol in size.node.expr.free_symbols if symbol in known}
    return found


def _inputs(graph: fx.Graph) -> Iterable[fx.Node]:
    return (node for node in graph.nodes if node.op == "placeholder")


def _renamed(spec: InputSpec, node: fx.Node) -> InputSpec:
    return dataclasses.replace(spec, arg=dataclasses.replace(spec.arg, name=node.name))


def _named(spec: OutputSpec, output: Any) -> OutputSpec:
    if not isinstance(output, fx.Node):
        return dataclasses.replace(spec, arg=ConstantArgument(spec.arg.name, output))
    if isinstance(spec.arg, ConstantArgument) and isinstance(output.meta.get("val"), torch.Tensor):
        return dataclasses.replace(spec, arg=TensorArgument(output.name))
    return dataclasses.replace(spec, arg=dataclasses.replace(spec.arg, name=output.name))
