"""Two doors, one middle: what Dynamo or torch.export hands over becomes the normal form that passes work on.

The trace runs the graph through an FX interpreter under ``make_fx(pre_dispatch=True)`` with functionalisation, which
keeps attention, linear, layer_norm and convolution whole and removes mutation of temporaries. What a graph writes to
its inputs stays a write, in its place (``input_writes.py``); a graph in which it cannot is refused
(:class:`CaptureError`): the caller hands such a graph to Inductor as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind as ExportKind
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.traceback import preserve_node_meta

from lightint_compile.capture.alone import traced_alone
from lightint_compile.capture.copied_memory import WritesToAView
from lightint_compile.capture.dry_run import Dynamic, sizes_marked, trace_once
from lightint_compile.capture.equal_sizes import equate_keys_and_values
from lightint_compile.capture.explicit_autocast import make_casts_explicit, uses_autocast
from lightint_compile.capture.foreign_tensors import INSIDE, foreign_values, is_inside_an_operation
from lightint_compile.capture.foreign_tensors import told as foreign_told
from lightint_compile.capture.functional import functional
from lightint_compile.capture.input_writes import put_in_place, refusal
from lightint_compile.capture.module_stacks import Differs as Differs
from lightint_compile.capture.normal_form import tidy
from lightint_compile.capture.repeat_tracing import RepeatingInterpreter
from lightint_compile.capture.repeated_blocks import BlocksOnce as BlocksOnce
from lightint_compile.capture.repeated_blocks import blocks_in_place as blocks_in_place
from lightint_compile.capture.repeated_blocks import trace_by_blocks
from lightint_compile.capture.transforms import levels_restored, uses_transforms, without_transforms
from lightint_compile.errors import CaptureError, EmptyGraphError, GraphBreakError, LightintError, told, user_line
from lightint_compile.passes.ir.fake_values import refresh
from lightint_compile.passes.ir.garbage import collection_paused
from lightint_compile.passes.ir.program import InputKind, Program, ProgramInput, fake_mode_of
from lightint_compile.passes.ir.remarks import clean_path
from lightint_compile.torch_compat import source_name, tracing_with

ARGUMENTS = "lightint_arguments"
"""Under this name a graph's ``meta`` holds the arguments of the function that it is a part of."""

OWNED = "lightint_owned"
"""Under this name it holds the parameters and buffers of the module, where the graph is the whole call."""


_REPLACED = "another tensor is put in its place, as by x.data = y"
_ASKED_BEFORE_REPLACING = torch.ops.aten._has_compatible_shallow_copy_type.default


@collection_paused()
def from_dynamo(graph_module: fx.GraphModule, example_inputs: Sequence[Any], *, name: str = "") -> Program:
    """The program of a graph that Dynamo captured, inside a ``torch.compile`` backend.

    Args:
        graph_module: the torch-level graph; parameters are already inputs (Dynamo inlines modules).
        example_inputs: what the backend was called with; only used where a placeholder carries no fake value.

    Raises:
        CaptureError: the graph writes to an input in a way that cannot be kept, holds an operation that cannot be
            traced before dispatch, or has a tensor that is no plain one.
    """
    foreign = foreign_tensors(graph_module, example_inputs)
    if foreign:
        raise CaptureError(foreign)
    placeholders = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    mode = _mode_of(placeholders, example_inputs)
    values = [
        _fake(node.meta.get("example_value"), real, mode)
        for node, real in zip(placeholders, example_inputs, strict=True)
    ]
    entries = [_dynamo_input(node, real) for node, real in zip(placeholders, example_inputs, strict=True)]
    with levels_restored(), tracing_with(mode):
        program = _program(graph_module, values, entries, mode, name or _root_name(graph_module))
    equate_keys_and_values(program)
    program.arguments, program.owned = graph_module.meta.get(ARGUMENTS), graph_module.meta.get(OWNED)
    return program


@collection_paused()
def from_exported(exported: ExportedProgram, *, name: str = "") -> Program:
    """The program of an exported one. Parameters, buffers and constants become placeholders like any other input.

    Raises:
        CaptureError: the program mutates a buffer or an input.
    """
    graph_module = exported.graph_module
    placeholders = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    for node in graph_module.graph.find_nodes(op="call_function", target=_ASKED_BEFORE_REPLACING):
        raise refusal(str(node.args[0]), _REPLACED)  # what torch.export leaves of ``x.data = y``
    kinds = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    entries = [_exported_input(node, kinds[node.name]) for node in placeholders]
    values = [node.meta["val"] for node in placeholders]
    mode = fake_mode_of(placeholders)
    return _program(graph_module, values, entries, mode, name or "exported", serves_writes=False)


@collection_paused()
def trace(
    module: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Dynamic | None = None,
) -> Program:
    """The program that ``torch.compile`` would hand to the backend, without compiling or running it.

    Args:
        module: a module or function; on the meta device nothing is allocated.
        dynamic: argument name to the dimension (or dimensions) whose size is symbolic.

    Raises:
        CaptureError: the call does not capture as one graph, or see :func:`from_dynamo`.
    """
    caught: list[Program] = []
    name = _name_of(module)

    def read(graph_module: fx.GraphModule, example_inputs: Sequence[Any]) -> None:
        try:
            caught.append(from_dynamo(graph_module, example_inputs, name=name))
        except LightintError:
            raise
        except Exception as error:
            raise CaptureError("the graph could not be captured", where=name, why=told(error)) from error

    try:
        with sizes_marked(module, args, kwargs or {}, dynamic or {}):
            if dynamic or not trace_by_blocks(module, args, kwargs or {}, read):
                trace_once(module, args, kwargs or {}, read)
    except torch._dynamo.exc.TorchDynamoException as error:
        where = user_line(error) or name
        raise GraphBreakError("the call does not capture as one graph", where=where, why=told(error)) from error
    if not caught:
        raise EmptyGraphError("the call ran no tensor operation", where=name, why="there is nothing to compile")
    return caught[0]


def _program(
    graph_module: fx.GraphModule,
    values: list[Any],
    entries: list[ProgramInput],
    mode: FakeTensorMode,
    name: str,
    *,
    serves_writes: bool = True,
) -> Program:
    mutated: list[int] = []
    replaced: list[int] = []
    outputs: list[Any] = []
    if uses_transforms(graph_module):
        graph_module = without_transforms(graph_module, values, mode)
    autocast = uses_autocast(graph_module)
    interpreters: list[RepeatingInterpreter] = []

    def traced_by(copies_views: bool) -> fx.GraphModule:
        def flat(*inputs: Any) -> tuple[Any, ...]:
            interpreter = RepeatingInterpreter(graph_module, copies_views=copies_views)
            interpreters.append(interpreter)
            leaves, spec = pytree.tree_flatten(interpreter.run(*inputs))
            outputs.append(spec)
            return (*leaves, *interpreter.unread())  # so that a pass can see and report them

        with preserve_node_meta(), mode, torch.no_grad(), _use_lazy_graph_module(True):
            return traced_alone(functional(flat, mutated, replaced), values, pre_dispatch=True)

    try:
        traced = traced_by(copies_views=True)
    except WritesToAView:
        traced = traced_by(copies_views=False)
    interpreters[-1].give_values()
    if replaced:
        paths = ", ".join(entries[index].path for index in replaced)
        raise refusal(paths, _REPLACED)
    written = _writes_in_place(traced, mutated, entries, serves_writes) if mutated else []
    traced.meta["output_spec"] = outputs[-1]
    inputs = _rename_inputs(traced, entries)
    _adopt_constants(traced, mode)
    tidy(traced)
    if autocast:
        make_casts_explicit(traced)
    _clean_module_paths(traced.graph)
    _drop_outputs(traced, outputs[-1].num_leaves)
    program = Program(traced, inputs, name=name)
    refresh(program, written)
    return program


def _writes_in_place(
    traced: fx.GraphModule, mutated: Sequence[int], entries: Sequence[ProgramInput], served: bool
) -> list[fx.Node]:
    """Make writes to inputs of the values that follow the results, where the caller of the graph can have writes."""
    if not served:
        raise refusal(", ".join(entries[index].path for index in mutated))
    placeholders = traced.graph.find_nodes(op="placeholder")
    results = traced.graph.output_node().args[0]
    finals = dict(zip((placeholders[index] for index in mutated), results[-len(mutated) :], strict=True))  # type: ignore[index, arg-type]
    return put_in_place(traced, finals, {placeholders[index]: entries[index].path for index in mutated})


def _drop_outputs(traced: fx.GraphModule, count: int) -> None:
    """Keep the first ``count`` outputs; what only the others needed stays in the graph as dead code."""
    output = traced.graph.output_node()
    output.args = (tuple(output.args[0][:count]),)  # type: ignore[index,arg-type]
    traced.recompile()


def _adopt_constants(traced: fx.GraphModule, mode: FakeTensorMode) -> None:
    """Tensors that the trace turned into attributes get fake values of the program's mode, like every other node."""
    for node in traced.graph.nodes:
        value = node.meta.get("val")
        if node.op == "get_attr" and isinstance(value, FakeTensor) and value.fake_mode is not mode:
            node.meta["val"] = mode.from_tensor(getattr(traced, str(node.target)), static_shapes=True)


def _rename_inputs(traced: fx.GraphModule, entries: Sequence[ProgramInput]) -> tuple[ProgramInput, ...]:
    """Give placeholders their readable names; an entry's name follows the node's, which FX makes unique."""
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    renamed = []
    for node, entry in zip(placeholders, entries, strict=True):
        node._rename(entry.name)
        node.target = node.name
        renamed.append(ProgramInput(node.name, entry.kind, entry.path))
    traced.recompile()
    return tuple(renamed)


def _clean_module_paths(graph: fx.Graph) -> None:
    """Module stacks with paths as the user writes them; a later call of one module keeps its ``@n`` mark."""
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack:
            node.meta["nn_module_stack"] = {
                str(key): (clean_path(path) + _call_mark(str(key), path), kind) for key, (path, kind) in stack.items()
            }


def _call_mark(key: str, path: str) -> str:
    for text in (path, key):
        _, at, call = text.rpartition("@")
        if at and call.isdigit():
            return f"@{call}"
    return ""


def is_buffer(node: fx.Node, real: Any) -> bool:
    """Whether an input of Dynamo's is a tensor of the module that is no parameter."""
    written = source_name(node) or node.name
    is_other = isinstance(real, torch.Tensor) and not isinstance(real, torch.nn.Parameter)
    return is_other and ("._buffers" in written or "L['self']" in written)


def inputs_of(graph_module: fx.GraphModule, example_inputs: Sequence[Any]) -> list[ProgramInput]:
    """The inputs of a graph of Dynamo's, as those of its program will be."""
    placeholders = graph_module.graph.find_nodes(op="placeholder")
    return [_dynamo_input(node, real) for node, real in zip(placeholders, example_inputs, strict=True)]


def foreign_tensors(graph_module: fx.GraphModule, example_inputs: Sequence[Any]) -> str:
    """Why a graph of Dynamo's has to be left alone for tensors that are no plain ones; empty where there are none."""
    if is_inside_an_operation():
        return INSIDE
    found = foreign_values(graph_module, example_inputs)
    if not found:
        return ""
    placeholders = graph_module.graph.find_nodes(op="placeholder")
    entries = dict(zip(placeholders, inputs_of(graph_module, example_inputs), strict=True))
    named = {f"the {_CALLED[entry.kind]} {entry.path}": found[node] for node, entry in entries.items() if node in found}
    return foreign_told(named or {f"{node.name} in the graph": value for node, value in found.items()})


_CALLED = {InputKind.PARAMETER: "parameter", InputKind.BUFFER: "buffer", InputKind.TENSOR: "input"}


def _dynamo_input(node: fx.Node, real: Any) -> ProgramInput:
    written = source_name(node) or node.name
    path = clean_path(written, of_module=False)
    if isinstance(real, torch.nn.Parameter):
        kind = InputKind.PARAMETER
    elif is_buffer(node, real):
        kind = InputKind.BUFFER
    else:
        kind = InputKind.TENSOR if isinstance(real, torch.Tensor) else InputKind.SYMBOL
    return ProgramInput(_identifier(path, kind), kind, path)


def _exported_input(node: fx.Node, spec: Any) -> ProgramInput:
    kind = {
        ExportKind.PARAMETER: InputKind.PARAMETER,
        ExportKind.BUFFER: InputKind.BUFFER,
        ExportKind.CONSTANT_TENSOR: InputKind.BUFFER,
    }.get(spec.kind, InputKind.TENSOR if isinstance(node.meta["val"], torch.Tensor) else InputKind.SYMBOL)
    path = spec.target or node.name
    return ProgramInput(_identifier(path, kind), kind, path)


def _identifier(path: str, kind: InputKind) -> str:
    prefix = {InputKind.PARAMETER: "p_", InputKind.BUFFER: "b_"}.get(kind, "")
    text = re.sub(r"\W+", "_", path).strip("_")
    return prefix + (text or "input") if not text[:1].isdigit() else f"{prefix or 's'}{text}"


def _mode_of(placeholders: Sequence[fx.Node], example_inputs: Sequence[Any]) -> FakeTensorMode:
    for value in [node.meta.get("example_value") for node in placeholders] + list(example_inputs):
        if isinstance(value, FakeTensor):
            return value.fake_mode
    context = torch._guards.TracingContext.try_get()
    if context is not None and context.fake_mode is not None:
        return context.fake_mode
    return FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)


def _fake(recorded: Any, real: Any, mode: FakeTensorMode) -> Any:
    if recorded is not None:
        return recorded
    if isinstance(real, torch.Tensor) and not isinstance(real, FakeTensor):
        return mode.from_tensor(real, static_shapes=True)
    return real


def _root_name(graph_module: fx.GraphModule) -> str:
    for node in graph_module.graph.nodes:
        for path, kind in (node.meta.get("nn_module_stack") or {}).values():
            if clean_path(path) == "":
                return str(getattr(kind, "__name__", kind))
    return _frame_name()


def _frame_name() -> str:
    """The module class or the function whose frame Dynamo is tracing; ``graph`` outside of a trace or in a wrapper."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        frame = InstructionTranslator.current_tx().output.root_tx
    except AttributeError:
        return "graph"
    owner, function = frame.f_locals.get("self"), frame.f_code.co_name
    if isinstance(owner, torch.nn.Module):
        return type(owner).__name__
    return "graph" if function == "inner" else str(function)


def _name_of(module: Callable[..., Any]) -> str:
    return type(module).__name__ if isinstance(module, torch.nn.Module) else getattr(module, "__name__", "function")
