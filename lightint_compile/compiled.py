"""Compiled graphs and the modules they belong to, so that a report can be asked for by compiled module."""

from __future__ import annotations

import dataclasses
import math
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch._dynamo.eval_frame import OptimizedModule, innermost_fn

from lightint_compile.asking import told_where
from lightint_compile.capture.calling import subject_of
from lightint_compile.errors import StateError, check_callable
from lightint_compile.fallback import Recovering
from lightint_compile.lowering.driver import Driver
from lightint_compile.lowering.run_timing import RunTimer, profiled
from lightint_compile.lowering.watchers import CallWatchers
from lightint_compile.modelwide import check_required
from lightint_compile.options.error_limits import Deviation
from lightint_compile.reporting import Report
from lightint_compile.reporting.section import Section
from lightint_compile.runtime.decision import Decision
from lightint_compile.runtime.handed_grids import Told, note, told_like
from lightint_compile.runtime.path_from_above import from_above
from lightint_compile.runtime.planner import Planner, of_one_rollout
from lightint_compile.runtime.run_rows import Times, as_rows, by_chunk
from lightint_compile.runtime.siblings import Siblings
from lightint_compile.runtime.underway import rollout_is_underway

Compared = tuple[int | None, Deviation]
"""The chunk that a call belongs to, ``None`` where nothing is decided, and how far it is from the exact results."""


class Form(NamedTuple):
    """What a graph was compiled for besides its inputs.

    Attributes:
        told: the grids of tokens among its inputs that other graphs made.
        inside: whether for calls inside of a rollout; ``None`` where those outside of one get the same.
    """

    told: Told = ()
    inside: bool | None = None

    def asked(self, args: Sequence[Any]) -> Form:
        """What a call with these arguments asks for."""
        told = told_like(args, self.told) if self.told else ()
        return Form(told, None if self.inside is None else rollout_is_underway())


class CompiledGraph:
    """What the backend returns to Dynamo for one graph.

    Attributes:
        function: takes the graph's flat inputs, returns its flat outputs.
        driver: the driver, ``None`` when Inductor got the graph as it is.
        device: of its first tensor.
        sizes: of the inputs that are no weights, by name: dtype and sizes, ``None`` for those that may change.
        program: the key under which its program is on disk; ``None`` where it is not.
        symbols: positions of the inputs that are sizes, by their symbols.
        form: what it was compiled for.
        of_another: makes it for another form; ``None`` where there is none.
        announce: says of a section what a user hears of once.
    """

    _all: ClassVar[weakref.WeakSet[CompiledGraph]] = weakref.WeakSet()
    _made: ClassVar[int] = 0
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(
        self, function: Callable[..., Any], section: Section, inputs: Sequence[Any], *, driver: Driver | None = None
    ) -> None:
        self.function, self._section, self.driver = function, section, driver
        self._subject: weakref.ref[Any] | None = None
        self._parameters = {id(value) for value in inputs if isinstance(value, torch.nn.Parameter)}
        self.device = next((value.device for value in inputs if isinstance(value, torch.Tensor)), None)
        self._siblings: Siblings | None = None
        self.sizes: dict[str, tuple[str, tuple[int | None, ...]]] = {}
        self.program: str | None = None
        self.symbols: dict[str, int] = {}
        self.form = Form()
        self.of_another: Callable[[Form], CompiledGraph] | None = None
        self.announce: Callable[[Section], None] | None = None
        self._others: dict[Form, CompiledGraph] = {}
        self._calls = CallWatchers()
        with self._lock:
            type(self)._made += 1
            self.order = type(self)._made
            self._all.add(self)

    def __call__(self, *args: Any) -> Any:
        """Run the graph."""
        return self.run(args)

    def follow(self, form: Form, of_another: Callable[[Form], CompiledGraph]) -> None:
        """Let calls that ask for another form than this one have a graph of their own."""
        self.form, self.of_another = form, of_another
        if form.inside is not None:
            self._section = self._section.with_remark(told_where(form.inside))

    def run(self, args: Sequence[Any]) -> Any:
        """Run the setting in force, and tell siblings where nothing was decided in this call."""
        if self.of_another is not None and (form := self.form.asked(args)) != self.form:
            return self._for(form).run(args)
        self.tell_siblings(args)
        result = (self._calls.around(self.function) if self._calls else self.function)(*args)
        if self._section.tokens:
            note(result, self._section.tokens, args, self.symbols)
        if isinstance(self.function, Recovering) and self.function.fell_back:
            self.tell_siblings(args, exactly=True)
        return result

    def watched_calls(self, watcher: Callable[..., Any]) -> AbstractContextManager[None]:
        """Run every call as ``watcher(function, *arguments)`` while the context lasts: for measurements."""
        return self._calls.added(watcher)

    def _for(self, form: Form) -> CompiledGraph:
        """The same graph in another form, compiled when a call first asks for it."""
        assert self.of_another is not None
        with self._lock:
            known = self._others.get(form)
        if known is None:
            known = self.of_another(form)
            known._subject, known._parameters = self._subject, self._parameters
            known.sizes, known.symbols = self.sizes, self.symbols
            if self._siblings is not None:
                known.join(self._siblings)
            if self.announce is not None:
                self.announce(known.section)
            with self._lock:
                self._others[form] = known
        return known

    def join(self, siblings: Siblings) -> None:
        """Share what is remembered of rollouts with other graphs of the same function."""
        self._siblings = siblings
        if self.driver is not None:
            self.driver.decisions.join(siblings)

    def tell_siblings(self, args: Sequence[Any], *, exactly: bool = False) -> None:
        """Say that this graph runs, where it decides nothing (``exactly``: this time)."""
        if self._siblings is not None and (exactly or self.driver is None or not self.driver.decisions.decides):
            self._siblings.ran_exactly(args)

    @property
    def section(self) -> Section:
        """Its part of the report, with what failed in calls of it."""
        failures = [self.function.failure] if isinstance(self.function, Recovering) else []
        if self.driver is not None:
            failures += [*(leaf.failure for leaf in self.driver.leaves.values()), *self.driver.replays.remarks()]
        failed = list(filter(None, failures))
        return self._section.with_remarks(failed) if failed else self._section

    @section.setter
    def section(self, section: Section) -> None:
        self._section = section

    def serves(self, module: torch.nn.Module) -> bool:
        """Whether the graph was captured from ``module`` (or a part of it): they share a parameter.

        Parameters are told apart by their addresses, as a weak reference would keep ``torch.utils.swap_tensors`` from
        them. Once what was compiled is gone, others may have its addresses.
        """
        if self._subject is not None and self._subject() is None:
            return False
        return any(id(parameter) in self._parameters for parameter in module.parameters())

    def belongs_to(self, subject: Any) -> None:
        """The graph was compiled in a call of ``subject``: what ``torch.compile`` was given."""
        self._subject = None if subject is None else weakref.ref(subject)

    def is_of(self, subject: Any) -> bool:
        """Whether it was; also where Dynamo gave the function up and compiled what it calls."""
        return subject is not None and self._subject is not None and self._subject() is subject

    @property
    def setting(self) -> str:
        """Which of several settings is in force; empty for a graph that has one."""
        return ""

    @property
    def errors(self) -> dict[str, float]:
        """What is known of the error at the setting in force, by name; empty for a graph without a budget."""
        return {}

    @property
    def chunk(self) -> int | None:
        """The chunk that was decided last; ``None`` where nothing is decided."""
        made = self.driver.decisions.made if self.driver is not None else ()
        return made[-1].chunk if made else None

    def comparing(self, graphs: Sequence[CompiledGraph]) -> AbstractContextManager[Sequence[Compared]] | None:
        """While the context lasts, calls of those of ``graphs`` that have a budget are made exactly as well.

        ``None`` for a graph without a budget.
        """
        return None

    def unlisted(self) -> Self:
        """The graph, no longer found by its module: it is a part of another one."""
        with self._lock:
            self._all.discard(self)
        return self

    @classmethod
    def forget_all(cls) -> None:
        """Drop every graph; their kept results go with them."""
        graphs = cls._every()
        for graph in graphs:
            if graph.driver is not None:
                graph.driver.reset()
                graph.driver.replays.forget()
        with cls._lock:
            cls._all.difference_update(graphs)
        Siblings.forget_all()

    @classmethod
    def _every(cls) -> list[CompiledGraph]:
        """All graphs that are alive, also while other threads compile."""
        with cls._lock:
            return list(cls._all)

    @classmethod
    def of(cls, compiled: Any) -> list[CompiledGraph]:
        """The graphs of a compiled module or function, in the order they were compiled.

        Raises:
            StateError: it was not compiled by lightint, or was never called.
        """
        module = compiled._orig_mod if isinstance(compiled, OptimizedModule) else compiled
        subject = subject_of(compiled)
        found = {graph for graph in cls._every() if graph.is_of(subject)}
        found |= {graph for graph in cls._every() if isinstance(module, torch.nn.Module) and graph.serves(module)}
        if not found:
            function = type(module).forward if isinstance(module, torch.nn.Module) else innermost_fn(module)
            found = set(_graphs_in(function))
        if not found:
            raise StateError(
                "there is no compiled graph to report on",
                why="the module was not called since torch.compile, or has another backend",
                fix='call torch.compile(module, backend="lightint") and run it once',
            )
        return sorted(found, key=lambda graph: graph.order)


def _graphs_in(function: Any) -> Iterator[CompiledGraph]:
    """The graphs that the code Dynamo made for ``function`` calls."""
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list

    code = getattr(function, "__code__", None)
    for entry in _debug_get_cache_entry_list(code) if code else ():
        for name in entry.code.co_names if entry.code else ():  # none where torch gave up compiling
            yield from _unwrapped(function.__globals__.get(name))


def _unwrapped(candidate: Any) -> Iterator[CompiledGraph]:
    while candidate is not None:
        if isinstance(candidate, CompiledGraph):
            yield candidate
            return
        candidate = getattr(candidate, "_torchdynamo_orig_callable", None) or getattr(candidate, "__wrapped__", None)


def report(
    compiled: Any, run: Callable[[], object] | None = None, *, trace: bool = False, errors: bool = False
) -> Report:
    """What lightint did to a compiled module: one section for each graph, and the rollout that ran last.

    Args:
        compiled: the result of ``torch.compile(..., backend="lightint")``, after a call.
        run: calls ``compiled``, once or for a whole rollout; it is run here, and every call is timed by stage, also
            one that another thread makes meanwhile. Calls that compile a further graph are not.
        trace: record the run with PyTorch's profiler as well, for ``report.to_perfetto``; that makes it slower.
        errors: run it once more, with every call made exactly as well, so that the report has the error of each chunk.
            Where results are fed back as inputs it is that of the rollout up to there, else that of the chunk alone.

    Raises:
        InputError: ``run`` cannot be called.
        StateError: the module was never called, or was compiled by another backend; errors are wanted without a run,
            or of a module without an error budget, or of one that writes to its inputs and was not rewritten; another
            run of it is being measured.
        PassError: a pass named by ``require`` rewrote nothing in any of its graphs.
    """
    if run is not None:
        check_callable("run", run, "report(compiled, run=lambda: run_rollout(compiled))")
    times, events = _timed(compiled, run, trace) if run is not None else ([], None)
    compared = _compared(compiled, run) if errors else []
    sections = [graph.section for graph in CompiledGraph.of(compiled)]
    check_required(sections)
    return dataclasses.replace(_with_run(Report.of(*sections), compiled, times, compared), trace=events)


def reset(compiled: Any) -> None:
    """Forget everything that a compiled module keeps between calls. Compiled code stays.

    It frees memory and starts rollouts afresh. Results are right without it.

    Args:
        compiled: as of :func:`report`.

    Raises:
        StateError: as of :func:`report`.
    """
    parameters = parameters_of(compiled)
    for graph in CompiledGraph.of(compiled):
        if graph.driver is not None:
            graph.driver.reset(parameters or None)


def parameters_of(compiled: Any) -> list[torch.nn.Parameter]:
    """The parameters that distinguish models with shared compiled code; empty for a function."""
    module = compiled._orig_mod if isinstance(compiled, OptimizedModule) else compiled
    return list(module.parameters()) if isinstance(module, torch.nn.Module) else []


def decisions(compiled: Any) -> list[Decision]:
    """The decisions of the rollout that a compiled module ran last, chunk by chunk, with the steps that were refused.

    The list is empty where nothing is decided at run time, and while the last call ran without a decision: the first
    chunk of a rollout, which has no context, or a graph that could not be rewritten.

    Args:
        compiled: as of :func:`report`.

    Raises:
        StateError: as of :func:`report`.
    """
    return _made(_asked(compiled))


def _asked(compiled: Any) -> list[tuple[Planner, str]]:
    """The planners of a compiled module that decided in the rollout that ran last, each with the setting in force."""
    parameters = parameters_of(compiled)
    asked = [
        (planner, graph.setting)
        for graph in CompiledGraph.of(compiled)
        if graph.driver is not None and (planner := graph.driver.decisions.planner_of(parameters)) is not None
    ]
    last = of_one_rollout(planner for planner, _ in asked)
    return [(planner, setting) for planner, setting in asked if planner in last]


def _made(asked: Sequence[tuple[Planner, str]]) -> list[Decision]:
    made = {
        decision.chunk: dataclasses.replace(decision, setting=setting).with_elements(decision.elements)
        for planner, setting in asked
        for decision in planner.decisions
    }
    if 1 in made:
        made.setdefault(0, Decision(chunk=0, context_frames=(), setting=made[1].setting))
    return [made[chunk] for chunk in sorted(made)]


def _with_run(report: Report, compiled: Any, times: Sequence[Times] = (), compared: Sequence[Compared] = ()) -> Report:
    """A report with the rollout that ran last, and what its calls took."""
    asked = _asked(compiled)
    made = _made(asked)
    if not made and not times:
        return report
    path = max((p for planner, _ in asked if (p := planner.path) is not None), key=len, default=None)
    rules = asked[-1][0].rules if asked else None
    lead = 0 if path is None or rules is None else rules.lead(len(path)) or 0
    errors = {graph.setting: graph.errors for graph in CompiledGraph.of(compiled)}
    worst = by_chunk(compared, Deviation.worst, decides=bool(made))
    measured = {chunk: _told(deviation) for chunk, deviation in worst.items()}
    rows = as_rows(made, rules.chunk if rules else 0, lead, times, errors, measured)
    return dataclasses.replace(report, chunks=rows, path={} if path is None else from_above(path))


def _told(deviation: Deviation) -> Mapping[str, float | str]:
    relative = deviation.relative if math.isfinite(deviation.relative) else "no number"
    return {"measured": relative} | ({"measured dB": deviation.psnr} if math.isfinite(deviation.psnr) else {})


def _compared(compiled: Any, run: Callable[[], object] | None) -> Sequence[Compared]:
    """How far every call that ``run`` makes is from the exact results."""
    graphs = CompiledGraph.of(compiled)
    found = next(filter(None, (graph.comparing(graphs) for graph in graphs)), None)
    if run is None or found is None:
        why = "nothing is run" if run is None else "the module was compiled without an error budget"
        fix = 'compile with options={"max_relative_error": 0.05}, and pass run=lambda: rollout(compiled)'
        raise StateError("errors cannot be measured", why=why, fix=fix)
    with found as calls:
        run()
    return calls


def _timed(compiled: Any, run: Callable[[], object], traced: bool) -> tuple[list[Times], str | None]:
    """Milliseconds of every call that ``run`` makes, and a profiler's trace of them as text."""
    graphs = CompiledGraph.of(compiled)
    timer = RunTimer(next((graph.device for graph in graphs if graph.device is not None), None))
    drivers, others = [graph.driver for graph in graphs if graph.driver], [each for each in graphs if not each.driver]
    with timer.on(drivers, others), profiled(traced) as trace:
        run()
    return [(call.chunk, call.milliseconds()) for call in timer.calls], trace.text
