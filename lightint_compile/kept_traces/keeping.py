"""Traces are kept beside their programs, and a later process takes one in place of tracing.

A kept trace is used where its key, its sources and all that its guards are about are what they were; then Dynamo's
checks are made anew of the values at hand, so that this process notices every later change as any other would.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.asking import differs_inside
from lightint_compile.capture.calling import call_under_way
from lightint_compile.compiled import CompiledGraph, Form
from lightint_compile.fallback import Recovering
from lightint_compile.kept_traces.again import GraphAgain
from lightint_compile.kept_traces.asked import Asked, why_never
from lightint_compile.kept_traces.descriptions import Describer, digest
from lightint_compile.kept_traces.guards import seen, without_scopes
from lightint_compile.kept_traces.record import Trace
from lightint_compile.kept_traces.surroundings import Sources
from lightint_compile.lowering import compiler_of
from lightint_compile.lowering.artifact_store import Store
from lightint_compile.modelwide import Captured, arrived
from lightint_compile.options import LightintOptions
from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.runtime.siblings import Siblings
from lightint_compile.torch_compat import compiled_frame
from lightint_compile.torch_frames import (
    checks_of,
    code_with,
    has_layout,
    installed,
    is_argument,
    is_watching,
    values_in,
)
from lightint_compile.torch_switches import state
from lightint_compile.trace_parts import Frame, PlainGuard, Traced, UnkeepableError

log = logging.getLogger(__name__)

RULE = "trace"
"""The rule of remarks on kept traces."""


class Traces(threading.local):
    """Who keeps the traces of one backend; see :class:`~lightint_compile.torch_frames.Keeper`."""

    def __init__(self, backend: Callable[..., Any]) -> None:
        self._backend = backend
        self._graphs: list[tuple[weakref.ref[CompiledGraph], tuple[Any, ...]]] = []
        self._says: tuple[str, str] | None = None
        self._why, self._describer = "", Describer()

    def wants(self, frame: Frame) -> bool:
        """Whether the call asks the backend for it."""
        try:
            return Asked.by(frame, self._backend) is not None
        except Exception:
            return False  # the backend itself says what is wrong with the options

    def compiled(self, graph: CompiledGraph, inputs: Sequence[Any], options: LightintOptions) -> None:
        """The backend compiled a graph, whose inputs have these sources."""
        why = why_never(options) if options.traces else ""
        if why:
            graph.section = graph.section.with_remark(_remark(_not_kept(why)))
        elif is_watching():
            self._graphs.append((weakref.ref(graph), tuple(inputs)))

    def find(self, frame: Frame) -> Any:
        """A kept trace that fits, as Dynamo takes it; ``None`` where it has to trace."""
        self._graphs, self._says, self._why, self._describer = [], None, "", Describer()
        asked = Asked.by(frame, self._backend)
        assert asked is not None
        try:
            key = asked.key(frame)
            for store, content in _kept(asked, key):
                found = self._tried(frame, asked, store, content)
                if found is not None:
                    return found
        except Exception as error:
            _refused(error)
        return None

    def look(self, guards: Sequence[PlainGuard], value_of: Callable[[Any], Any]) -> None:
        """Describe what the guards of a trace are about."""
        try:
            self._says = seen(without_scopes(guards, value_of), value_of, self._describer)
        except Exception as error:
            self._says, self._why = None, str(error)

    def made(self, frame: Frame, traced: Callable[[], Traced]) -> None:
        """Keep a trace that was made, or say in the report why not."""
        asked = Asked.by(frame, self._backend)
        graphs = [(graph, inputs) for held, inputs in self._graphs if (graph := held()) is not None]
        assert asked is not None
        try:
            self._keep(frame, asked, graphs, traced)
        except Exception as error:
            for graph, _ in graphs:
                graph.section = graph.section.with_remark(_remark(_not_kept(str(error))))
            log.info("Dynamo's trace is not kept: %s", error)
            log.debug("the reason was", exc_info=error)
        finally:
            self._graphs, self._describer = [], Describer()

    def _keep(self, frame: Frame, asked: Asked, graphs: Sequence[_Made], traced: Callable[[], Traced]) -> None:
        if not frame.stands_alone:
            raise UnkeepableError("the function uses variables of the one that it was made in")
        if len(graphs) != 1 or graphs[0][0].program is None:
            raise UnkeepableError("the call is not one graph with a program of its own")
        if self._says is None:
            raise UnkeepableError(self._why)
        ((graph, inputs),) = graphs
        made = traced()
        sources = Sources.of(made.codes, self._describer)
        guards = without_scopes(made.conditions.guards, values_in(frame))
        conditions = dataclasses.replace(made.conditions, guards=tuple(guards))
        plain = dataclasses.replace(made, codes=(), conditions=conditions)
        trace = Trace(str(graph.program), plain, self._says, sources, dict(graph.sizes), inputs)
        name = digest(f"{trace.says} {conditions.state}")[:16]
        if not Store().keep_trace(trace.program, asked.key(frame), name, trace.to_bytes()):
            raise UnkeepableError("there is no folder for it")

    def _tried(self, frame: Frame, asked: Asked, store: Store, content: bytes) -> Any:
        start = time.perf_counter()
        try:
            trace = Trace.from_bytes(content)
            conditions = trace.traced.conditions
            self._compare(trace, values_in(frame))
            code, name = code_with(frame, trace.traced)
            self._compare_rest(trace, values_in(frame))
            checks = checks_of(frame, conditions)
            graph = _graph_of(frame, asked, store, trace, GraphAgain(frame, asked, code, trace))
        except Exception as error:
            _refused(error)
            return None
        seconds = {"kept trace": 1.0, "backend seconds": time.perf_counter() - start}
        graph.section = graph.section.with_measurements(seconds)
        arrived(graph, Captured(None, call_under_way(), (), ends=True), asked.options)
        return installed(frame, code, name, graph, checks)

    def _compare(self, trace: Trace, value_of: Callable[[Any], Any]) -> None:
        """Look at what differs most often: the process, the arguments and the sources.

        Raises:
            UnkeepableError: something differs.
        """
        conditions = trace.traced.conditions
        if state() != conditions.state:
            raise UnkeepableError("the switches of the process differ")
        arguments = [guard for guard in conditions.guards if is_argument(guard[1])]
        layouts = [each for each in conditions.layouts if is_argument(each[0])]
        fits = seen(arguments, value_of, self._describer)[0] == trace.says[0]
        if not fits or not all(has_layout(value_of(source), layout) for source, layout in layouts):
            raise UnkeepableError("the arguments differ")
        changed = trace.sources.changed(self._describer)
        if changed:
            raise UnkeepableError(changed)

    def _compare_rest(self, trace: Trace, value_of: Callable[[Any], Any]) -> None:
        if seen(trace.traced.conditions.guards, value_of, self._describer) != trace.says:
            raise UnkeepableError("the module or something else that Dynamo guards differs")


_Made = tuple[CompiledGraph, tuple[Any, ...]]
"""A graph that the backend compiled, and where its inputs come from."""


def _refused(error: Exception) -> None:
    log.info("a kept trace of Dynamo's does not fit: %s", error)
    log.debug("the reason was", exc_info=error)


def _kept(asked: Asked, key: str) -> Iterator[tuple[Store, bytes]]:
    folder = asked.options.artifacts
    for store in ([Store(Path(folder))] if folder else []) + [Store()]:
        for content in store.traces(key):
            yield store, content


def _graph_of(frame: Frame, asked: Asked, store: Store, trace: Trace, again: GraphAgain) -> CompiledGraph:
    """The compiled graph of a kept trace, its program from disk.

    Raises:
        UnkeepableError: the program is gone.
    """
    options = asked.options
    stored = store.load(trace.program, compiler_of(options, asked.config), again.region, strict=options.strict)
    if stored is None:
        raise UnkeepableError("its program is gone")
    driver = stored.driver
    function = driver if options.strict else Recovering(driver, again, stock=True, writes=driver.writes)
    section = stored.section.with_measurements({"warm start": 1.0}).with_remark(_remark(_TAKEN))
    value_of = values_in(frame)
    inputs = [value_of(source) for source in trace.inputs]
    graph = CompiledGraph(function, section, inputs, driver=driver)
    graph.program, graph.sizes = trace.program, dict(trace.sizes)
    if asked.inside is not None and differs_inside(section.remarks):
        graph.follow(Form(inside=asked.inside), again.in_form)
    identity = compiled_frame()
    if identity is not None:
        graph.join(Siblings.of((identity, repr(options.to_dict()))))
    return graph


_TAKEN = "Dynamo did not trace: its trace was kept by an earlier process, and the report has no graphs"


def _not_kept(why: str) -> str:
    return f"Dynamo's trace is not kept, and a later process traces again: {why}"


def _remark(message: str) -> Remark:
    return Remark(kind=RemarkKind.ANALYSIS, pass_name="backend", rule=RULE, message=message)


def tensor_sources(graph_module: fx.GraphModule) -> list[Any]:
    """Where Dynamo found the tensors that a graph is given."""
    nodes = graph_module.graph.find_nodes(op="placeholder")
    tensors = [node for node in nodes if isinstance(node.meta.get("example_value"), torch.Tensor)]
    sources = [getattr(node.meta.get("grapharg"), "source", None) for node in tensors]
    return [source for source in sources if source is not None]
