"""Run a program on tensors by input path, and compare a rewritten program with the one it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor, nn

from lightint_compile import capture
from lightint_compile.passes.ir.program import InputKind, Program
from lightint_compile.passes.pipeline import Pipeline, PipelineResult


def feeds_of(call: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Values by input path: the module's parameters and buffers, and the call's tensors."""
    own = {**dict(call.named_parameters()), **dict(call.named_buffers())} if isinstance(call, nn.Module) else {}
    return {**own, **arguments}


def run(program: Program, feeds: Mapping[str, Any]) -> list[Tensor]:
    """The program's outputs. A symbol's path is ``name.size().dim``."""
    program.graph_module.recompile()
    with torch.no_grad():
        return list(program.graph_module(*(_value(entry, feeds) for entry in program.inputs)))


def _value(entry: Any, feeds: Mapping[str, Any]) -> Any:
    if entry.kind is InputKind.SYMBOL and entry.path not in feeds:
        name, _, dim = entry.path.partition(".size().")
        return feeds[name].shape[int(dim)]
    return feeds[entry.path]


def rewritten(program: Program, text: str) -> tuple[Program, PipelineResult]:
    """A copy of ``program`` after the passes of ``text``, verified between them; errors surface."""
    copy = program.snapshot()
    return copy, Pipeline.parse(text).run(copy, strict=True)


def trace(call: Any, arguments: Mapping[str, Any], **options: Any) -> Program:
    """The program of a call with keyword arguments."""
    with torch.no_grad():
        return capture.trace(call, (), dict(arguments), **options)


def trace_function(function: Any, arguments: Mapping[str, Any]) -> Program:
    """The program of a function without control flow, in a tenth of the time that Dynamo takes."""
    return capture.from_dynamo(fx.symbolic_trace(function), list(arguments.values()))


def largest_difference(left: list[Tensor], right: list[Tensor]) -> float:
    """The largest absolute difference over all outputs, relative to the largest reference value of each."""
    assert len(left) == len(right)
    pairs = zip(left, right, strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)
