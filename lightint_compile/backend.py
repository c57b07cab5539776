"""The backend that ``torch.compile(model, backend="lightint")`` calls, once a captured graph.

It is one module-level function, so that two calls of ``torch.compile`` with equal options compare equal and nothing
recompiles. Every way out is honest: the graph is rewritten, or Inductor gets it as it is and a remark says why.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.fx as fx
from torch._inductor import config as inductor_config
from torch._inductor.compile_fx import compile_fx

from lightint_compile import capture
from lightint_compile.budget.graph import BudgetedGraph, start_remark, stored
from lightint_compile.budget.ladder import ladder_of
from lightint_compile.errors import CaptureError, LightintError, OptionError
from lightint_compile.graphs import CompiledGraph
from lightint_compile.lowering import compiler_of, lower
from lightint_compile.options import LightintOptions
from lightint_compile.passes.program import Program
from lightint_compile.passes.remarks import Remark, RemarkKind
from lightint_compile.reporting.section import Section
from lightint_compile.rewrite import Rewritten, rewrite
from lightint_compile.store import Store, guard_holds, guard_of, key_of

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
        PassError: a pass named by ``require`` did nothing, or one failed under ``strict``.
    """
    if unknown:
        raise OptionError(
            f"the backend takes no argument {min(unknown)!r}", where="torch.compile", fix="use options={...}"
        )
    chosen = options if isinstance(options, LightintOptions) else LightintOptions.from_mapping(options)
    config = _config(mode)
    reason = _reason_to_leave_alone(graph_module, example_inputs, chosen)
    if reason:
        return _inductor(graph_module, example_inputs, config, chosen, reason)
    if chosen.budget is not None and not chosen.budget.is_exact:
        return _within_budget(graph_module, example_inputs, chosen, config)
    return _Compilation(graph_module, example_inputs, chosen, config).run()


def _reset() -> None:
    """Called by ``torch._dynamo.reset()``: compiled graphs are gone, and what they kept with them."""
    CompiledGraph.forget_all()


lightint.reset = _reset  # type: ignore[attr-defined]


def _within_budget(
    graph_module: fx.GraphModule, inputs: Sequence[Any], options: LightintOptions, config: dict[str, Any]
) -> CompiledGraph:
    """The graph at the setting that a calibration on disk chose for the budget, else exactly, until one is made."""
    assert options.budget is not None
    ladder = ladder_of(options)
    settings = _Settings(graph_module, inputs, [rung.applied_to(options) for rung in ladder], config)
    if len(ladder) == 1:
        return settings.compilations[0].run()
    key = key_of(graph_module, dataclasses.replace(options, max_relative_error=None, min_psnr=None), config, inputs)
    path = Store().calibration(key) if key else None
    table = stored(path, ladder)
    rung = table.choice(options.budget)
    start = settings.compilations[rung].run()
    graph = BudgetedGraph(start, inputs, settings, ladder, options.budget, path, rung)
    remark = start_remark(table, options.budget)
    log.info("%s %s", graph.section.name, remark.message)
    graph.section = graph.section.with_remark(remark)
    return graph


class _Settings:
    """One graph at the settings of a ladder, captured once; see :class:`~lightint_compile.budget.graph.Builds`."""

    def __init__(
        self,
        graph_module: fx.GraphModule,
        inputs: Sequence[Any],
        settings: Sequence[LightintOptions],
        config: dict[str, Any],
    ) -> None:
        self._graph_module, self._inputs = graph_module, inputs
        self._captured: Program | None = None
        self.compilations = [_Compilation(graph_module, inputs, each, config, self._capture) for each in settings]

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


class _Compilation:
    """One graph on its way through capture, rewrite and lowering, or through the store."""

    def __init__(
        self,
        graph_module: fx.GraphModule,
        inputs: Sequence[Any],
        options: LightintOptions,
        config: dict[str, Any],
        captured: Callable[[], Program] | None = None,
    ) -> None:
        self._captured = captured or (lambda: capture.from_dynamo(graph_module, inputs))
        self._graph_module = graph_module
        self._inputs = inputs
        self._options = options
        self._config = config
        self._store = Store()
        self._regions: dict[str, fx.GraphModule] = {}
        self._ahead: Rewritten | None = None

    def run(self) -> CompiledGraph:
        """The compiled graph, from disk when an equal one was compiled before."""
        start = time.perf_counter()
        key = self._key()
        found = self._load(key)
        if found is not None:
            return self._finished(*found, start, warm=True)
        try:
            rewritten = self._rewritten()
        except LightintError as error:
            if not isinstance(error, CaptureError) or self._options.strict:
                raise
            return _inductor(self._graph_module, self._inputs, self._config, self._options, str(error))
        if not _worth_it(rewritten):
            reason = "nothing in it is what lightint rewrites"
            config = self._config | _guards_against_inductor(rewritten)
            return _inductor(self._graph_module, self._inputs, config, self._options, reason, rewritten)
        return self._compiled(rewritten, key, start)

    def run_later(self) -> CompiledGraph | None:
        """The compiled graph, made after Dynamo's trace is over; ``None`` for one that cannot be rewritten."""
        start = time.perf_counter()
        key = self._key()
        found = self._load(key)
        if found is not None:
            return self._finished(*found, start, warm=True)
        rewritten = self._rewritten_ahead()
        self._ahead = None
        return None if rewritten is None else self._compiled(rewritten, key, start)

    def remarks(self) -> Sequence[Remark]:
        """What the passes say of the graph, without compiling it; none for one that cannot be rewritten."""
        found = self._load(self._key())
        if found is not None:
            return found[1].remarks
        rewritten = self._rewritten_ahead()
        return () if rewritten is None else rewritten.remarks

    def section(self) -> Section:
        """The report without a compilation."""
        return Section.of(self._rewritten())

    def forget(self) -> None:
        """Let go of what was rewritten ahead."""
        self._ahead = None

    def _rewritten_ahead(self) -> Rewritten | None:
        """The rewritten graph, kept until it is compiled or forgotten; ``None`` for one that cannot be rewritten."""
        try:
            self._ahead = self._ahead or self._rewritten()
        except CaptureError:
            return None
        return self._ahead

    def _key(self) -> str | None:
        return None if self._options.delegate == "eager" else key_of(self._graph_module, self._options, self._config)

    def _rewritten(self) -> Rewritten:
        try:
            program = self._captured()
        except LightintError:
            raise
        except Exception as error:
            if self._options.strict:
                raise
            log.debug("capture failed", exc_info=True)
            raise CaptureError("the graph could not be captured", why=f"{type(error).__name__}: {error}") from error
        return rewrite(program, self._options)

    def _compiled(self, rewritten: Rewritten, key: str | None, start: float) -> CompiledGraph:
        config = self._config | _guards_against_inductor(rewritten)
        lowered = lower(rewritten.program, self._options, config)
        measurements = {
            "distinct regions": len(lowered.regions),
            "region calls": sum(lowered.calls.values()),
            "compile seconds": lowered.seconds,
            "rewrite seconds": time.perf_counter() - start - lowered.seconds,
        }
        section = Section.of(rewritten, measurements)
        if key:
            self._store.save(key, lowered, section, guard_of(self._symbols()))
        return self._finished(lowered.driver, section, start, warm=False)

    def _load(self, key: str | None) -> tuple[Any, Section] | None:
        if key is None:
            return None
        stored = self._store.load(key, compiler_of(self._options, self._config), self._region)
        if stored is None or not guard_holds(stored.guard, self._symbols()):
            return None
        return stored.driver, stored.section

    def _region(self, name: str) -> fx.GraphModule:
        """A region of this graph made again: the store keeps kernels, not graphs."""
        if not self._regions:
            root = self._rewritten().program.graph_module
            self._regions = {n: m for n, m in root.named_children() if isinstance(m, fx.GraphModule)}
        return self._regions[name]

    def _symbols(self) -> list[torch.SymInt]:
        values = [n.meta.get("example_value") for n in self._graph_module.graph.nodes if n.op == "placeholder"]
        return [value for value in values if isinstance(value, torch.SymInt) and value.node.has_hint()]

    def _finished(self, driver: Any, section: Section, start: float, *, warm: bool) -> CompiledGraph:
        seconds = {"warm start": float(warm), "backend seconds": time.perf_counter() - start}
        return CompiledGraph(driver, section.with_measurements(seconds), self._inputs, driver=driver)


def _config(mode: str | None) -> dict[str, Any]:
    return dict(torch._inductor.list_mode_options(mode)) if mode else {}


def _reason_to_leave_alone(
    graph_module: fx.GraphModule, example_inputs: Sequence[Any], options: LightintOptions
) -> str:
    if options.preset == "off" and options.passes is None:
        return 'preset="off"'
    tensors = [value for value in example_inputs if isinstance(value, torch.Tensor)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "it needs gradients, and the rewrites are for inference (call it under torch.no_grad())"
    return ""


def _inductor(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    config: dict[str, Any],
    options: LightintOptions,
    reason: str,
    rewritten: Rewritten | None = None,
) -> CompiledGraph:
    """Inductor on the graph as Dynamo captured it, which is what ``backend="inductor"`` does."""
    log.info("graph handed to Inductor as it is: %s", reason)
    section = Section.of(rewritten) if rewritten else Section(name="graph", options=options.to_dict())
    section = dataclasses.replace(section, untouched=reason)
    remark = Remark(
        kind=RemarkKind.ANALYSIS, pass_name="backend", rule="inductor", message=f"Inductor as it is: {reason}"
    )
    function: Callable[..., Any] = graph_module.forward
    if options.delegate != "eager":
        with inductor_config.patch(config):
            function = cast(Callable[..., Any], compile_fx(graph_module, list(example_inputs)))
    return CompiledGraph(function, section.with_remark(remark), example_inputs)


def _worth_it(rewritten: Rewritten) -> bool:
    """Whether a pass changed the work, or a region is called more than once and so compiled fewer times."""
    applied = {remark.pass_name for remark in rewritten.remarks if remark.kind is RemarkKind.APPLIED}
    calls = [node.target for node in rewritten.program.graph.nodes if node.op == "call_module"]
    return bool(applied - {"outline-regions"}) or len(calls) > len(set(calls))


def _guards_against_inductor(rewritten: Rewritten) -> dict[str, Any]:
    """Keep Inductor's own attention patterns away from hand-written attention that was left as it is.

    They ignore how the key was permuted (pytorch#195320) and give wrong numbers without a word.
    """
    from lightint_compile.passes.canonicalize_attention import inductor_guard

    return {"disabled_passes": "pass_pattern_0"} if inductor_guard(rewritten.program) else {}
