"""The ``.pt2`` form: a rewritten program back as an ``ExportedProgram`` that ``torch.export.save`` writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch.fx as fx
import torch.utils._pytree as pytree
from torch.export import ExportedProgram, ModuleCallEntry
from torch.export.graph_signature import ConstantArgument, ExportGraphSignature, InputSpec, OutputSpec

from lightint_compile.exporting.results import plain_spec
from lightint_compile.passes.ir.program import Program

REPORT_FILE = "lightint_report.json"
"""The report's name among the archive's extra files."""


def as_exported(program: Program, captured: ExportedProgram) -> ExportedProgram:
    """The rewritten ``program`` with the weights, calling convention and size ranges of the program it came from.

    Passes keep placeholders and outputs in order, so only names change. Results are plain containers, see ``results``.
    """
    graph = _portable(program.graph)
    for spec, node in zip(captured.graph_signature.input_specs, _inputs(graph), strict=True):
        if isinstance(spec.arg, ConstantArgument):
            node.meta["val"] = spec.arg.value
    signature = ExportGraphSignature(
        [_renamed(spec, node) for spec, node in zip(captured.graph_signature.input_specs, _inputs(graph), strict=True)],
        [_named(spec, out) for spec, out in zip(captured.graph_signature.output_specs, _outputs(graph), strict=True)],
    )
    return ExportedProgram(
        root=fx.GraphModule(program.graph_module, graph),
        graph=graph,
        graph_signature=signature,
        state_dict=captured.state_dict,
        range_constraints=captured.range_constraints,
        module_call_graph=[_with_plain_results(captured.module_call_graph[0])],
        example_inputs=captured.example_inputs,
        constants=captured.constants,
        verifiers=[captured.verifier],
    )


def _with_plain_results(entry: ModuleCallEntry) -> ModuleCallEntry:
    assert entry.signature is not None
    signature = dataclasses.replace(entry.signature, out_spec=plain_spec(entry.signature.out_spec))
    return dataclasses.replace(entry, signature=signature)


#: What the archive keeps of a node: its value, and where in the user's source it came from.
_KEPT = ("val", "stack_trace", "nn_module_stack")


def _portable(graph: fx.Graph) -> fx.Graph:
    copied, mapping = fx.Graph(), dict[fx.Node, fx.Node]()
    outputs = copied.graph_copy(graph, mapping)
    copied.output(outputs)
    for old, new in mapping.items():
        new.meta = {key: old.meta[key] for key in _KEPT if key in old.meta}
    return copied


def _inputs(graph: fx.Graph) -> Iterable[fx.Node]:
    return (node for node in graph.nodes if node.op == "placeholder")


def _outputs(graph: fx.Graph) -> list[Any]:
    leaves: list[Any] = pytree.tree_leaves(graph.output_node().args[0])
    return leaves


def _renamed(spec: InputSpec, node: fx.Node) -> InputSpec:
    return dataclasses.replace(spec, arg=dataclasses.replace(spec.arg, name=node.name))


def _named(spec: OutputSpec, output: Any) -> OutputSpec:
    if not isinstance(output, fx.Node):
        return spec
    return dataclasses.replace(spec, arg=dataclasses.replace(spec.arg, name=output.name))
