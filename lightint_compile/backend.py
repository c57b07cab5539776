"""The backend that ``torch.compile(model, backend="lightint")`` calls, once a captured graph.

It is one module-level function, so that two calls of ``torch.compile`` with equal options compare equal and nothing
recompiles. Every way out is honest: the graph is rewritten, or Inductor gets it as it is and a remark says why.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.fx as fx

from lightint_compile import capture
from lightint_compile.as_captured import inductor_as_it_is
from lightint_compile.asking import asked_inside, depends_on_rollout
from lightint_compile.blocks_once import ByBlocks
from lightint_compile.capture import ARGUMENTS, OWNED, blocks_in_place
from lightint_compile.capture.gradients import records_gradients
from lightint_compile.compilation import Compilation
from lightint_compile.compiled import CompiledGraph, Form
from lightint_compile.error_budget.budgeted_graph import BudgetedGraph, start_remark, stored
from lightint_compile.error_budget.calibrated_weights import weights_of
from lightint_compile.errors import OptionError
from lightint_compile.kept_traces.asked import inductor_config
from lightint_compile.kept_traces.keeping import Traces, tensor_sources
from lightint_compile.lowering.artifact_store import Store, key_of
from lightint_compile.modelwide import Captured, StatedNames, arrived, forget_models, owned_by
from lightint_compile.options import LightintOptions
from lightint_compile.options.ladder import ladder_of
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import RemarkKind
from lightint_compile.reporting.section import Section
from lightint_compile.runtime.handed_grids import symbols_of, told
from lightint_compile.runtime.siblings import Siblings
from lightint_compile.torch_compat import compiled_arguments, compiled_frame
from lightint_compile.torch_frames import keep_with, trace_by

log = logging.getLogger(__name__)


def lightint(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    **unknown: Any,
) -> Callable[..., Any]:
    """Compile one graph that Dynamo captured.

    Args:
        mode: as of ``torch.compile``, handed to Inductor for every region.
        options: see :class:`~lightint_compile.options.LightintOptions`.

    Raises:
        OptionError: an option that cannot be taken.
        PassError: a pass named by ``require`` did nothing in the whole model, or one failed under ``strict``.
    """
    if unknown:
        raise OptionError(
            f"the backend takes no argument {min(unknown)!r}", where="torch.compile", fix="use options={...}"
        )
    given = options if isinstance(options, LightintOptions) else LightintOptions.from_mapping(options)
    inside = depends_on_rollout(given)
    chosen = asked_inside(given, inside)
    block_calls = blocks_in_place(graph_module)
    arguments = compiled_arguments()
    graph_module.meta[ARGUMENTS] = (*dict(chosen.roles), *dict(chosen.grids)) if arguments is None else arguments
    captured = Captured.of(graph_module)
    names = StatedNames.of(graph_module, example_inputs, arguments, chosen)
    if names is not None and arguments is not None and captured.is_whole:
        graph_module.meta[OWNED] = owned_by(captured.call)
    sources = tensor_sources(graph_module)
    graph = _compiled(graph_module, example_inputs, chosen, inductor_config(mode), inside)
    graph.sizes, graph.symbols = _sizes(graph_module), symbols_of(graph_module)
    _traces.compiled(graph, sources, chosen)
    _by_blocks.compiled(graph, chosen, block_calls)
    frame = compiled_frame()
    if frame is not None:
        graph.join(Siblings.of((frame, repr(chosen.to_dict()))))
    arrived(graph, captured, chosen, names)
    return graph


def _sizes(graph_module: fx.GraphModule) -> dict[str, tuple[str, tuple[int | None, ...]]]:
    """See :class:`CompiledGraph`."""
    values = {node.name: node.meta.get("example_value") for node in graph_module.graph.find_nodes(op="placeholder")}
    return {
        name: (str(value.dtype).removeprefix("torch."), tuple(s if isinstance(s, int) else None for s in value.shape))
        for name, value in values.items()
        if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter)
    }


def _compiled(
    graph_module: fx.GraphModule,
    inputs: Sequence[Any],
    options: LightintOptions,
    config: dict[str, Any],
    inside: bool | None,
) -> CompiledGraph:
    reason = _reason_to_leave_alone(graph_module, inputs, options)
    if reason:
        return inductor_as_it_is(graph_module, inputs, config, options, reason)
    if options.budget is not None and not options.budget.is_exact:
        return _within_budget(graph_module, inputs, options, config)
    others = () if options.is_shared else told(graph_module, inputs)  # ranks compile together, and not in a call
    return Compilation(graph_module, inputs, options, config, form=Form(others, inside)).run()


def _reset() -> None:
    """Called by ``torch._dynamo.reset()``: compiled graphs are gone, and what they kept with them."""
    CompiledGraph.forget_all()
    forget_models()


lightint.reset = _reset  # type: ignore[attr-defined]

_by_blocks = ByBlocks(lightint)
trace_by(_by_blocks.way_of)
_traces = Traces(lightint)
keep_with(_traces)


def _within_budget(
    graph_module: fx.GraphModule, inputs: Sequence[Any], options: LightintOptions, config: dict[str, Any]
) -> CompiledGraph:
    """The graph at the setting that a calibration on disk chose for the budget, else exactly, until one is made."""
    assert options.budget is not None
    ladder = ladder_of(options)
    settings = _Settings(graph_module, inputs, [rung.applied_to(options) for rung in ladder], config)
    if len(ladder) == 1:
        return settings.compilations[0].run()
    places = weights_of(graph_module, inputs)
    weights = [inputs[place] for place in places]
    key = key_of(graph_module, dataclasses.replace(options, max_relative_error=None, min_psnr=None), config, weights)
    path = Store().calibration(key) if key else None
    table = stored(path, ladder)
    rung = table.choice(options.budget)
    start = settings.compilations[rung].run()
    text = table.rows[rung - 1].text if rung else ""
    graph = BudgetedGraph(start, inputs, settings, ladder, options.budget, path, rung, text, places)
    remark = start_remark(table, options.budget)
    log.info("%s %s", graph.section.name, remark.message)
    graph.section = graph.section.with_remark(remark)
    return graph


class _Settings:
    """One graph at the settings of a ladder, captured once; see :class:`~.budgeted_graph.Builds`."""

    def __init__(
        self,
        graph_module: fx.GraphModule,
        inputs: Sequence[Any],
        settings: Sequence[LightintOptions],
        config: dict[str, Any],
    ) -> None:
        self._graph_module, self._inputs = graph_module, inputs
        self._captured: Program | None = None
        self.compilations = [Compilation(graph_module, inputs, each, config, self._capture) for each in settings]

    def build(self, rung: int) -> CompiledGraph | None:
        return self.compilations[rung].run_later()

    def applied(self) -> frozenset[str]:
        remarks = self.compilations[-1].remarks()
        return frozenset(r.pass_name for r in remarks if r.kind is RemarkKind.APPLIED)

    def section(self, rung: int) -> Section:
        return self.compilations[rung].section()

    def release(self) -> None:
        self._captured = None
        self.compilations[-1].forget()

    def _capture(self) -> Program:
        if self._captured is None:
            self._captured = capture.from_dynamo(self._graph_module, self._inputs)
        return self._captured.snapshot()


def _reason_to_leave_alone(
    graph_module: fx.GraphModule, example_inputs: Sequence[Any], options: LightintOptions
) -> str:
    if options.runs_nothing:
        return 'preset="off"'
    foreign = capture.foreign_tensors(graph_module, example_inputs)
    if foreign:
        return foreign
    if records_gradients(graph_module, example_inputs):
        return "it needs gradients, and the rewrites are for inference (call it under torch.no_grad())"
    return ""
