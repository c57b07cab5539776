"""A captured program, rewritten for one format, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec, OutputKind

from lightint_compile import capture
from lightint_compile.errors import ExportError, LightintError, OptionError, told
from lightint_compile.exporting.archive import as_exported, results_spec
from lightint_compile.exporting.calls import Call
from lightint_compile.exporting.capturing import Source, name_of
from lightint_compile.exporting.check import seeded
from lightint_compile.exporting.formats import ONNX, PT2, Format
from lightint_compile.exporting.graph_form import NUMBERS, flat, stay_sparse
from lightint_compile.exporting.open_decisions import Opened, opened
from lightint_compile.exporting.results import place_names, plain_spec
from lightint_compile.modelwide import check_required
from lightint_compile.options import LightintOptions
from lightint_compile.options.pipelines import pipeline_of
from lightint_compile.passes.ir.remarks import Numerics, RemarkKind
from lightint_compile.pipeline_run import Rewritten, rewrite
from lightint_compile.reporting import Report
from lightint_compile.torch_marks import eager_calls

_DECIDING = ("adaptive-context", "step-cache")
"""Passes that put decisions into the program; they need its regions."""


@dataclass
class Prepared:
    """What a file is written from.

    Attributes:
        source: what was captured.
        captured: its program.
        opened: the rewritten program, with what is decided at run time as inputs.
        report: what was rewritten.
        approximate: whether a rewrite changes the results.
    """

    source: Source
    captured: ExportedProgram
    opened: Opened
    report: Report
    approximate: bool
    _eager: list[torch.nn.Module] = field(default_factory=list)

    @property
    def original(self) -> Callable[..., Any]:
        """The module, as it was."""
        return self.source if isinstance(self.source, torch.nn.Module) else self.source.module()

    @property
    def inputs(self) -> dict[str, str]:
        """What the caller decides: names and meanings."""
        return {each.name: each.meaning for each in self.opened.inputs}

    @property
    def compared_with(self) -> str:
        """What :meth:`reference` computes with."""
        return "the rewritten graph" if self._compares_graph else "the module"

    @property
    def _compares_graph(self) -> bool:
        return self.approximate or bool(self.opened.inputs)

    def flat_graph(self) -> fx.GraphModule:
        """The graph without regions."""
        return flat(self.opened.program.graph_module)

    def program(self, graph: fx.GraphModule, example: Call) -> ExportedProgram:
        """``graph``, which is the rewritten program's in some form, with weights and calling convention."""
        return as_exported(self.opened, self.captured, graph, example.decided)

    def reference(self, call: Call) -> list[Any]:
        """The flat outputs that a file has to have: the module's, or those of the rewritten graph in this process."""
        args, kwargs = call.given
        with torch.no_grad(), seeded(), eager_calls():
            if not self._compares_graph:
                return pytree.tree_leaves(self.original(*args, **kwargs))
            if not self._eager:
                self._eager.append(self.program(self.flat_graph(), call).module())
            return pytree.tree_leaves(self._eager[0](*args, **kwargs))

    @property
    def input_names(self) -> list[str]:
        """Names of the tensors that a call gives, in order: of the module's arguments, then of what is decided."""
        own = [each.arg.name for each in self._given() if not isinstance(each.arg, ConstantArgument)]
        return [*own, *(each.name for each in self.opened.inputs)]

    def by_name(self, call: Call) -> dict[str, torch.Tensor]:
        """The tensors of a call by :attr:`input_names`."""
        spec = self.captured.call_spec.in_spec
        named = pytree.tree_unflatten([0] * spec.num_leaves, spec)[1]
        leaves = pytree.tree_leaves((call.args, {name: call.kwargs[name] for name in named}))
        tensors = [each for each in leaves if isinstance(each, torch.Tensor)]
        return dict(zip(self.input_names, [*tensors, *call.decided.values()], strict=True))

    @property
    def left_out(self) -> tuple[str, ...]:
        """The names of results that are neither tensors nor numbers."""
        names = place_names(results_spec(self.captured.call_spec.out_spec, self.opened))
        specs = self.captured.graph_signature.output_specs
        values = [each.arg.value if isinstance(each.arg, ConstantArgument) else 0 for each in specs]
        return tuple(name for name, value in zip(names, values, strict=False) if not isinstance(value, NUMBERS))

    @staticmethod
    def tensors(results: Sequence[Any]) -> list[torch.Tensor]:
        """Of flat results the tensors and numbers, all as tensors."""
        return [torch.as_tensor(value) for value in results if isinstance(value, (torch.Tensor, *NUMBERS))]

    def _given(self) -> list[InputSpec]:
        return [each for each in self.captured.graph_signature.input_specs if each.kind is InputKind.USER_INPUT]

    def constants(self) -> list[tuple[int, str, Any]]:
        """Numbers, texts and truth values among the flat arguments: place, name, value."""
        return [
            (place, each.arg.name, each.arg.value)
            for place, each in enumerate(self._given())
            if isinstance(each.arg, ConstantArgument)
        ]


def prepare(source: Source, captured: ExportedProgram, options: LightintOptions, kind: Format) -> Prepared:
    """Rewrite a captured program.

    Raises:
        ExportError: it cannot be rewritten, or decides in a way that no file can.
        OptionError: several ranks are asked for.
    """
    if options.is_shared:
        why = "a file runs in one process, and each rank has a graph of its own"
        raise OptionError("a file is for one rank", where="options['gpus']", why=why, fix="leave out gpus and mesh")
    rewritten = _rewritten(source, captured, options, kind)
    report = Report.of(rewritten)
    check_required(report.sections)
    _check_results(captured, kind)
    found = opened(rewritten.program)
    if kind is not PT2:
        stay_sparse(found.program.graph_module)
    return Prepared(source, captured, found, report, _is_approximate(rewritten))


def _check_results(captured: ExportedProgram, kind: Format) -> None:
    """Refuse results that torch writes and then cannot read, or cannot write at all. ONNX leaves them out."""
    names, specs = place_names(plain_spec(captured.call_spec.out_spec)), captured.graph_signature.output_specs
    given = [each.arg for each in specs if each.kind is OutputKind.USER_OUTPUT]
    if kind is PT2 and not given:
        why = "torch.export.save writes no program without results"
        raise ExportError("the program has no result", where="results", why=why, fix="return a tensor")
    for name, arg in zip(names, given, strict=True):
        if kind is not ONNX and isinstance(arg, ConstantArgument) and isinstance(arg.value, str):
            why, fix = f"torch has no form for texts among the results of a {kind.suffix} file", "return it elsewhere"
            raise ExportError("a result is a text", where=f"results: {name}", why=why, fix=fix)


def _rewritten(source: Source, captured: ExportedProgram, options: LightintOptions, kind: Format) -> Rewritten:
    try:
        program = capture.from_exported(captured, name=name_of(source))
    except Exception as error:
        where = error.where if isinstance(error, LightintError) else name_of(source)
        mode = "call module.eval() first: it is in train mode" if getattr(source, "training", False) else ""
        fix = "; or ".join(filter(None, (mode, error.fix if isinstance(error, LightintError) else "")))
        raise ExportError("the program cannot be rewritten", where=where, why=told(error), fix=fix) from error
    return rewrite(program, options, leave_out=_left_out(options, kind))


def _left_out(options: LightintOptions, kind: Format) -> tuple[str, ...]:
    """Which rows of an input differ is asked of a driver. Regions are of use to a format with functions, and to steps
    that may be reused."""
    decides = any(step.name in _DECIDING for step in pipeline_of(options).passes)
    return ("distinct-rows",) if decides or kind is ONNX else ("distinct-rows", "outline-regions")


def _is_approximate(rewritten: Rewritten) -> bool:
    applied = [remark for remark in rewritten.remarks if remark.kind is RemarkKind.APPLIED]
    return any(remark.numerics is Numerics.APPROXIMATE for remark in applied)
