"""One graph on its way to a compiled one: from disk, or by capture, passes and lowering.

Whatever of this fails is tried again with less, and in the end Inductor gets the graph as Dynamo captured it.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.fx as fx
from torch._dynamo.convert_frame import compile_lock

from lightint_compile import capture
from lightint_compile.agreement import agreed
from lightint_compile.as_captured import inductor_as_it_is, one_by_one, section_without_passes
from lightint_compile.asking import asked_inside, differs_inside
from lightint_compile.compiled import CompiledGraph, Form
from lightint_compile.errors import CaptureError, OptionError, PassError, one_line
from lightint_compile.fallback import Recovering, in_one_line, is_answered, told
from lightint_compile.lowering import Lowered, compiler_of, lower
from lightint_compile.lowering.artifact_store import Store, guard_holds, guard_of, key_of
from lightint_compile.lowering.driver import Driver
from lightint_compile.lowering.shipped_programs import why_none_fits
from lightint_compile.lowering.workers.asked import workers_for
from lightint_compile.lowering.workers.pool import Workers
from lightint_compile.options import LightintOptions
from lightint_compile.options.pipelines import SHARD, pipeline_of
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.ranks import Ranks
from lightint_compile.passes.ir.remarks import Numerics, Remark, RemarkKind
from lightint_compile.pipeline_run import Rewritten, rewrite
from lightint_compile.reporting.graphs import Graphs
from lightint_compile.reporting.section import Section
from lightint_compile.runtime.handed_grids import remarks_on, tell

log = logging.getLogger(__name__)

OUTLINE = "outline-regions"

NEEDS_ROOT = "distinct-rows"
"""An exact pass that asks the driver, which it can do in a root that calls regions only."""

_INDUCTOR = "Inductor got the graph as it is, without what lightint would save"


class NothingLeftError(Exception):
    """No way of compiling the graph is left but Inductor's.

    Attributes:
        reason: why, for the log and the report.
        remarks: what failed on the way; empty where nothing did and the graph is just none to rewrite.
        rewritten: the graph after passes that changed nothing worth it.
    """

    def __init__(self, reason: str, remarks: Sequence[Remark] = (), rewritten: Rewritten | None = None) -> None:
        super().__init__(reason)
        self.reason, self.remarks, self.rewritten = reason, tuple(remarks), rewritten


class Compilation:
    """One graph on its way through capture, rewrite and lowering, or through the store."""

    def __init__(
        self,
        graph_module: fx.GraphModule,
        inputs: Sequence[Any],
        options: LightintOptions,
        config: dict[str, Any],
        captured: Callable[[], Program] | None = None,
        form: Form | None = None,
    ) -> None:
        self._captured = captured or (lambda: capture.from_dynamo(graph_module, inputs))
        self._graph_module = graph_module
        self._inputs = inputs
        self._options = options
        self._config = config
        self._store = Store()
        self._shipped = Store(Path(options.artifacts)) if options.artifacts else None
        self._again: Graphs | None = None
        self._sources = [
            (node, getattr(node.meta.get("grapharg"), "source", None))
            for node in graph_module.graph.nodes
            if node.op == "placeholder"
        ]
        self._ahead: Rewritten | None = None
        self._form = form or Form()

    def run(self) -> CompiledGraph:
        """The compiled graph, from disk when an equal one was compiled before.

        Raises:
            OptionError: options that cannot be taken.
            PassError: a pass named by ``require`` did nothing or cannot be compiled.
            RankError: several ranks share the call, and one of them failed or compiled something else.
            Exception: under ``strict`` what failed; else what Inductor raises on the graph as it is.
        """
        return self._together(self._run)

    def _together(self, run: Callable[[], CompiledGraph]) -> CompiledGraph:
        """What ``run`` makes; several ranks make it together."""
        ranks = Ranks.of(self._options.gpus, self._options.mesh)
        return run() if ranks is None else agreed(ranks, run, _word)

    def _run(self) -> CompiledGraph:
        try:
            return self._made()
        except NothingLeftError as found:
            left = found
        config = self._config | (_guards_against_inductor(left.rewritten) if left.rewritten else {})
        graph = inductor_as_it_is(
            self._graph_module, self._inputs, config, self._options, left.reason, left.rewritten, left.remarks
        )
        self._follow(graph, tokens=bool(graph.section.tokens))  # nothing else of it depends on whose tokens it gets
        return graph

    def run_later(self) -> CompiledGraph | None:
        """The compiled graph, made after Dynamo's trace is over; ``None`` for one that cannot be rewritten."""
        try:
            with compile_lock:  # a call compiles it, beside no other compilation
                return self._made(at_all_costs=True)
        except NothingLeftError as left:
            log.info("the setting is not compiled: %s", left.reason)
            return None
        finally:
            self._ahead = None

    def remarks(self) -> Sequence[Remark]:
        """What the passes say of the graph, without compiling it; none for one that cannot be rewritten."""
        found = self._load(self.key())
        if found is not None:
            return found[1].remarks
        try:
            self._ahead = self._ahead or self._rewritten()
        except NothingLeftError:
            return ()
        return self._ahead.remarks

    def section(self) -> Section:
        """The report without a compilation."""
        try:
            return Section.of(self._rewritten())
        except NothingLeftError as left:
            return dataclasses.replace(section_without_passes(self._options), untouched=left.reason)

    def forget(self) -> None:
        """Let go of what was rewritten ahead."""
        self._ahead = None

    def _made(self, *, at_all_costs: bool = False) -> CompiledGraph:
        """The compiled graph: as it was kept, or made anew."""
        start = time.perf_counter()
        key = self.key()
        found = self._load(key)
        if found is not None:
            return self._finished(*found, start, key, warm=True)
        with workers_for(self._graph_module, self._options, self._config) as workers:
            return self._made_anew(start, key, workers, at_all_costs)

    def _made_anew(self, start: float, key: str | None, workers: Workers | None, at_all_costs: bool) -> CompiledGraph:
        """The compiled graph, where need be without the passes that cannot be compiled."""
        failure: Exception | None = None
        applied: set[str] = set()
        for leave_out in self._ways():
            if failure and leave_out.isdisjoint(applied):
                continue  # they did nothing: it would fail again
            rewritten = self._ahead if self._ahead and not leave_out else self._rewritten(leave_out)
            if not at_all_costs and not _worth_it(rewritten):
                failed = [self._answered(failure, "compiling", _INDUCTOR)] if failure else []
                raise NothingLeftError("nothing in it is what lightint rewrites", failed, rewritten)
            applied = _applied(rewritten)
            try:
                lowered, section = self._lowered(rewritten, start, workers)
            except Exception as error:
                if self._options.strict or not is_answered(error):
                    raise
                log.debug("a way of compiling the graph failed", exc_info=error)
                failure = failure or error
                continue
            saved = None
            if failure is not None:
                less = f"it is compiled without {', '.join(sorted(leave_out))}, which may be slower"
                section = section.with_remark(self._answered(failure, "compiling", less))
            elif key and self._save(key, lowered, section):
                saved = key
            return self._finished(lowered.driver, section, start, saved, warm=False)
        assert failure is not None
        if self._options.require:
            names = ", ".join(self._options.require)
            raise PassError(f"the graph cannot be compiled with the required {names}", why=in_one_line(failure))
        remark = self._answered(failure, "compiling", _INDUCTOR)
        raise NothingLeftError(remark.message, [remark])

    def _ways(self) -> Iterator[frozenset[str]]:
        """Passes to leave out, ever more of them; none that is required is among them."""
        passes = pipeline_of(self._options).passes
        approximate = {step.name for step in passes if step.numerics is Numerics.APPROXIMATE}
        tried: set[frozenset[str]] = set()
        for names in (set(), {OUTLINE, NEEDS_ROOT}, {OUTLINE, NEEDS_ROOT, *approximate}):
            way = frozenset(names).intersection(step.name for step in passes)
            if way not in tried and way.isdisjoint(self._options.require):
                tried.add(way)
                yield way

    def _answered(self, error: Exception, stage: str, instead: str) -> Remark:
        """The remark on a failure; raises it where it is not to be answered."""
        if self._options.strict or not is_answered(error):
            raise error
        return told(stage, instead, error)

    def key(self) -> str | None:
        """The key of the program on disk; ``None`` where it has none."""
        if self._options.delegate == "eager":
            return None
        try:
            tokens = {"tokens of inputs": self._form.told} if self._form.told else {}
            return key_of(self._graph_module, self._options, self._config | tokens)
        except Exception as error:
            self._told_of_store(error)
            return None

    def _rewritten(self, leave_out: frozenset[str] = frozenset()) -> Rewritten:
        """The graph after the passes.

        Raises:
            NothingLeftError: it cannot be captured, or not be rewritten.
        """
        for node, source in self._sources:  # Dynamo takes them away once it is done, and roles are told by them
            if source is not None:
                node.meta.setdefault("grapharg", SimpleNamespace(source=source))
        try:
            program = self._captured()
        except CaptureError as error:
            if self._options.strict:
                raise
            raise NothingLeftError(one_line(error)) from error
        except Exception as error:
            failure = self._answered(error, "capturing", _INDUCTOR)
            raise NothingLeftError(failure.message, [failure]) from error
        tell(program, self._form.told)
        try:
            return rewrite(program, self._options, leave_out=leave_out)
        except (OptionError, PassError):
            raise
        except Exception as error:
            failure = self._answered(error, "rewriting", _INDUCTOR)
            raise NothingLeftError(failure.message, [failure]) from error

    def _lowered(self, rewritten: Rewritten, start: float, workers: Workers | None) -> tuple[Lowered, Section]:
        config = self._config | _guards_against_inductor(rewritten)
        lowered = lower(rewritten.program, self._options, config, workers)
        measurements = {
            "distinct regions": len(lowered.regions),
            "region calls": sum(lowered.calls.values()),
            "compile seconds": lowered.seconds,
            "regions compiled in workers": lowered.in_workers,
            "rewrite seconds": time.perf_counter() - start - lowered.seconds,
        }
        return lowered, Section.of(rewritten, measurements).with_remarks(lowered.remarks)

    def _load(self, key: str | None) -> tuple[Driver, Section] | None:
        if key is None:
            return None
        stores = [self._store] if self._shipped is None else [self._shipped, self._store]
        return next((found for store in stores if (found := self._loaded(store, key)) is not None), None)

    def _loaded(self, store: Store, key: str) -> tuple[Driver, Section] | None:
        try:
            compiler = compiler_of(self._options, self._config)
            stored = store.load(key, compiler, self.region, strict=self._options.strict)
            if stored is None or not guard_holds(stored.guard, self._symbols()):
                return None
        except Exception as error:
            self._told_of_store(error)
            return None
        return stored.driver, stored.section

    def _save(self, key: str, lowered: Lowered, section: Section) -> bool:
        try:
            return self._store.save(key, lowered, section, guard_of(self._symbols()))
        except Exception as error:
            self._told_of_store(error)
            return False

    def _told_of_store(self, error: Exception) -> None:
        """Artifacts on disk only save time: without them the graph is compiled."""
        if self._options.strict:
            raise error
        log.warning("programs kept on disk are not used: %s", in_one_line(error))
        log.debug("the failure was", exc_info=error)

    def region(self, name: str) -> fx.GraphModule:
        """A region of this graph made again: the store keeps kernels, not graphs."""
        return cast(fx.GraphModule, self._graphs().after.get_submodule(name))

    def _graphs(self) -> Graphs:
        """The graphs before and after, of a warm start once somebody asks for them."""
        if self._again is None:
            self._again = Graphs.of(self._rewritten())
        return self._again

    def _symbols(self) -> list[torch.SymInt]:
        values = [n.meta.get("example_value") for n in self._graph_module.graph.nodes if n.op == "placeholder"]
        return [value for value in values if isinstance(value, torch.SymInt) and value.node.has_hint()]

    def _finished(
        self, driver: Driver, section: Section, start: float, program: str | None, *, warm: bool
    ) -> CompiledGraph:
        seconds = {"warm start": float(warm), "backend seconds": time.perf_counter() - start}
        section = section.with_measurements(seconds)
        if self._shipped is not None and not warm:
            section = section.with_remark(not_shipped(str(self._options.artifacts)))
        if warm:
            section = dataclasses.replace(section, source=self._graphs)
        alone = self._options.strict or self._options.is_shared  # the others would wait for a rank that starts again
        function = driver if alone else self._recovering(driver)
        section = section.with_remarks(remarks_on(self._form.told, self._graph_module))
        graph = CompiledGraph(function, section, self._inputs, driver=driver)
        graph.program = None if self._form.told else program  # a kept trace does not ask whose tokens they are
        self._follow(graph)
        return graph

    def _follow(self, graph: CompiledGraph, *, tokens: bool = True) -> None:
        """Let calls that ask for another form have a graph of their own; nothing of this call's inputs is held."""
        inside = self._form.inside if differs_inside(graph.section.remarks) else None
        form = Form(self._form.told if tokens else (), inside)
        if form == Form():
            return
        again = copy.copy(self)
        again._ahead, again._again = None, None
        nodes = self._graph_module.graph.find_nodes(op="placeholder")
        again._inputs = [node.meta.get("example_value") for node in nodes]
        again._captured = lambda: capture.from_dynamo(again._graph_module, again._inputs)
        graph.follow(form, again.in_form)

    def in_form(self, form: Form) -> CompiledGraph:
        """The graph in another form, made after Dynamo's trace is over."""
        other = copy.copy(self)
        other._form, other._options = form, asked_inside(self._options, form.inside)
        return other._together(
            lambda: other.run_later() or one_by_one(other._graph_module, other._inputs, other._options)
        )

    def _recovering(self, driver: Driver) -> Recovering:
        stock = self._options.delegate != "eager"
        return Recovering(driver, self._graph_module.forward, stock=stock, writes=driver.writes)


def not_shipped(folder: str) -> Remark:
    """What is said of a graph that a folder of programs was to have."""
    reason = why_none_fits(Path(folder))
    log.warning("%s has no program for a graph, which is compiled here: %s", folder, reason)
    message = f"{folder} has no program for this graph, which was compiled here: {reason}"
    return Remark(kind=RemarkKind.ANALYSIS, pass_name="backend", rule="artifacts", message=message)


def _word(graph: CompiledGraph) -> str:
    """What ranks must have in common to run a graph together: the calls that each makes on its part."""
    applied = (r for r in graph.section.remarks if r.kind is RemarkKind.APPLIED and r.pass_name == SHARD)
    return next((str(remark.args["agreed"]) for remark in applied), "every rank computes all of it")


def _worth_it(rewritten: Rewritten) -> bool:
    """Whether a pass changed the work or is required, or a region is called more than once, which compiles it once."""
    calls = [node.target for node in rewritten.program.graph.nodes if node.op == "call_module"]
    asked = _applied(rewritten).intersection(rewritten.options.require)
    return bool(asked or _applied(rewritten) - {OUTLINE}) or len(calls) > len(set(calls))


def _applied(rewritten: Rewritten) -> set[str]:
    return {remark.pass_name for remark in rewritten.remarks if remark.kind is RemarkKind.APPLIED}


def _guards_against_inductor(rewritten: Rewritten) -> dict[str, Any]:
    """Keep Inductor's own attention patterns away from hand-written attention that was left as it is.

    They ignore how the key was permuted (pytorch#195320) and give wrong numbers without a word.
    """
    from lightint_compile.passes.canonicalize_attention import inductor_guard

    return {"disabled_passes": "pass_pattern_0"} if inductor_guard(rewritten.program) else {}
