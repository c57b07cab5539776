"""A graph as Dynamo captured it, where nothing of lightint's is to run: by Inductor, or operation by operation."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch.fx as fx
from torch._inductor import compile_fx
from torch._inductor import config as inductor_config
from torch._inductor.exc import InductorError

from lightint_compile.compiled import CompiledGraph
from lightint_compile.lowering.fresh_results import FreshResults, traced_memory
from lightint_compile.options import LightintOptions
from lightint_compile.overwritten_reads import copies_made, settings
from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.pipeline_run import Rewritten
from lightint_compile.reporting.section import Section

log = logging.getLogger(__name__)

NOTHING_FUSED = {"max_fusion_size": 1}
"""Settings of Inductor's under which every operation has a kernel of its own."""


def inductor_as_it_is(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    config: dict[str, Any],
    options: LightintOptions,
    reason: str,
    rewritten: Rewritten | None = None,
    remarks: Sequence[Remark] = (),
) -> CompiledGraph:
    """Inductor on the graph as Dynamo captured it, as ``backend="inductor"`` does, results in memory of their own."""
    log.info("graph handed to Inductor as it is: %s", reason)
    section = Section.of(_undone(rewritten)) if rewritten else section_without_passes(options)
    section = dataclasses.replace(section, untouched=reason)
    remark = Remark(
        kind=RemarkKind.ANALYSIS, pass_name="backend", rule="inductor", message=f"Inductor as it is: {reason}"
    )
    function: Callable[..., Any] = graph_module.forward
    if options.delegate != "eager":
        results = FreshResults(traced_memory(graph_module.graph))
        with inductor_config.patch(config):
            compiled, copies = _reading_first(graph_module, list(example_inputs))
        function = results.behind(compiled)
        if copies:
            remarks = [*remarks, _reads_first(copies)]
    if options.cuda_graphs:
        remarks = [*remarks, _NOT_RECORDED]
    return CompiledGraph(function, section.with_remarks([*remarks, remark]), example_inputs)


_NOT_RECORDED = Remark(
    kind=RemarkKind.MISSED,
    pass_name="backend",
    rule="cuda-graphs",
    message="nothing is recorded as a CUDA graph: Inductor has the graph as it is",
    hint='mode="reduce-overhead" asks Inductor for CUDA graphs of its own',
)


def _reading_first(graph_module: fx.GraphModule, inputs: list[Any]) -> tuple[Callable[..., Any], int]:
    """The graph by Inductor, which keeps reads in front of writes, and how many copies that takes.

    Handed on as patches, settings are those of a backward pass as well, which is compiled in its first call. Where
    Inductor fails on a graph with copies, as it may when it fuses them, it fuses nothing.
    """
    chosen, before = settings(), copies_made()
    try:
        compiled = compile_fx.compile_fx(graph_module, inputs, config_patches=chosen)
    except InductorError as error:
        if copies_made() == before:
            raise
        log.debug("Inductor fuses nothing in a graph", exc_info=error)
        before = copies_made()
        compiled = compile_fx.compile_fx(graph_module, inputs, config_patches={**chosen, **NOTHING_FUSED})
    return cast(Callable[..., Any], compiled), copies_made() - before


def _reads_first(count: int) -> Remark:
    message = "a value is copied before the graph writes over it, where Inductor would read it afterwards"
    if count > 1:
        message = (
            f"{count} values are copied before the graph writes over them, where Inductor would read them afterwards"
        )
    return Remark(kind=RemarkKind.ANALYSIS, pass_name="backend", rule="reads-first", message=message)


def one_by_one(graph_module: fx.GraphModule, inputs: Sequence[Any], options: LightintOptions) -> CompiledGraph:
    """The graph operation by operation, in place of another form that could not be compiled."""
    why = "compiling it in another form failed, and it runs operation by operation"
    section = dataclasses.replace(section_without_passes(options), untouched=why)
    return CompiledGraph(graph_module.forward, section, inputs)


def section_without_passes(options: LightintOptions) -> Section:
    """The section of a graph that no pass has seen."""
    return Section(name="graph", options=options.to_dict())


def _undone(rewritten: Rewritten) -> Rewritten:
    """Remarks on passes whose result is not run: outlining, where nothing else was done, becomes a miss."""
    why = "undone: no region is called twice, and nothing else was rewritten"
    remarks = tuple(
        dataclasses.replace(remark, kind=RemarkKind.MISSED, message=why)
        if remark.kind is RemarkKind.APPLIED
        else remark
        for remark in rewritten.remarks
    )
    return dataclasses.replace(rewritten, program=rewritten.original, remarks=remarks)
