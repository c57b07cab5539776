"""The search: passes first, run operator by operator, then sites of the pass, then compiled regions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch.fx as fx

from lightint_compile.bisecting.captured_call import CapturedCall, CapturedGraph, Form, Rollout, as_captured
from lightint_compile.bisecting.judging import Judge, Tolerance
from lightint_compile.bisecting.sites import Site, can_be_compared, sites_of
from lightint_compile.capture.copies import Invocation
from lightint_compile.errors import InputError
from lightint_compile.lowering.driver import Driver
from lightint_compile.options import LightintOptions
from lightint_compile.passes.ir.effects import draws_random
from lightint_compile.reporting.region import Region

Tell = Callable[[str], object]
"""Is told of every run."""

_SAME_DRAWS = {"fallback_random": True}
"""Of Inductor: random numbers as operators draw them. By itself it draws others, which is no fault of a region."""

_OTHER_DRAWS = "; random numbers were drawn as eager draws them, where the compiled model draws others"

SHARE = 0.1
"""A value counts as different from this share of the tolerance on."""


@dataclass(frozen=True)
class Finding:
    """What makes the results differ.

    Attributes:
        cause: ``nothing``, ``capture``, ``pass``, ``region`` or ``regions together``.
        name: of the pass or the region.
        graph: number of the graph, from 0; ``None`` where several or none are to blame.
        sites: of the pass, where its values could be compared.
        text: all of it, for a person.
        repro: the region with its inputs, to be written as a script.
    """

    cause: str
    name: str = ""
    graph: int | None = None
    sites: tuple[Site, ...] = ()
    text: str = ""
    repro: Region | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return "\n".join([self.text, *(f"  {site}" for site in self.sites)])


def bisect(
    call: Invocation,
    options: LightintOptions,
    judge: Judge | None = None,
    tell: Tell = lambda _: None,
    rollout: Rollout | None = None,
) -> Finding:
    """Find what makes the results of a call differ from the eager ones.

    The call is run on copies, some ten times. Each run is judged; a pass is to blame if the results are good without it
    and bad with it, all passes before it being there in both.

    Args:
        call: a module or function with its arguments; of one that is compiled already, what it was before.
        judge: what good results are; within a relative error of 1e-3 by default.
        tell: is given a line a run.
        rollout: calls the module that it is given, chunk after chunk, and gives the results of all; in the place of the
            one call. It has to do the same every time. What it is given is compiled, or in a form of the search's.

    Raises:
        InputError: the call's own results are not good by the judge.
        CaptureError, StateError: the call cannot be traced, or not be copied.
    """
    return _Search(CapturedCall(call, options, rollout), judge or Tolerance(), tell).found()


class _Search:
    def __init__(self, call: CapturedCall, judge: Judge, tell: Tell) -> None:
        self._call, self._judge, self._tell = call, judge, tell
        self._exact = call.exact()
        self._drivers: dict[tuple[int, int], Driver] = {}

    def found(self) -> Finding:
        good, why = self._judge.says(self._exact, self._exact)
        if not good:
            raise InputError("the eager results are not good", why=why, fix="correct the verdict or the model first")
        if not self._is_good("as captured", as_captured):
            return Finding("capture", text="the graphs as Dynamo captured them differ already: no pass is to blame")
        counts = [len(graph.passes()) for graph in self._graphs()]
        if not self._is_good("all passes, operator by operator", self._form(counts)):
            return self._guilty_pass(counts)
        return self._guilty_region(counts)

    def _graphs(self) -> list[CapturedGraph]:
        return [graph for graph in self._call.graphs if graph is not None]

    def _is_good(self, what: str, form: Form) -> bool:
        good, why = self._judge.says(self._exact, self._call.run(form))
        self._tell(f"{'good' if good else 'bad '}  {what} ({why})")
        return good

    def _form(self, counts: Sequence[int]) -> Form:
        """Every graph after the first of its passes, as many as ``counts`` says."""
        graphs = self._graphs()

        def form(graph: CapturedGraph) -> Callable[..., Any]:
            count = counts[graphs.index(graph)]
            return graph.driver(graph.passes()[:count]) if count else graph.function

        return form

    def _guilty_pass(self, counts: Sequence[int]) -> Finding:
        """The graphs are tried one after another with all of their passes, then the passes of the one that is bad."""
        graphs = self._graphs()
        done = [0] * len(graphs)
        for number, graph in enumerate(graphs):
            trial = [*done[:number], counts[number], *done[number + 1 :]]
            if len(graphs) > 1 and self._is_good(f"all passes of graph {number + 1}", self._form(trial)):
                continue
            return self._in_graph(number, graph, counts[number])
        return Finding("pass", text="no graph is bad by itself: the passes of several together make the difference")

    def _in_graph(self, number: int, graph: CapturedGraph, count: int) -> Finding:
        passes = graph.passes()
        good, bad = 0, count
        while bad - good > 1:
            middle = (good + bad) // 2
            counts = [middle if place == number else 0 for place in range(len(self._graphs()))]
            if self._is_good(f"up to {passes[middle - 1].name}", self._form(counts)):
                good = middle
            else:
                bad = middle
        step = passes[bad - 1]
        before, after = graph.after(passes[: bad - 1]), graph.after(passes[:bad])
        text = f"{step.name} makes the difference (graph {number + 1} of {len(self._graphs())})"
        if not (can_be_compared(before) and can_be_compared(after)):
            whole = "; it changes what a chunk runs, so the pass as a whole is the site"
            return Finding("pass", step.name, number, text=text + whole)
        sites = sites_of(before, after, graph.args, SHARE * self._least())
        told = f"{text}, in {len(sites)} places:" if sites else f"{text}; no single value is far off"
        return Finding("pass", step.name, number, tuple(sites), told)

    def _least(self) -> float:
        return self._judge.relative if isinstance(self._judge, Tolerance) else Tolerance().relative

    def _guilty_region(self, counts: Sequence[int]) -> Finding:
        """Regions by Inductor: all of them, then those of halves of the list, until one is left."""
        names = [
            (number, name)
            for number, (graph, count) in enumerate(zip(self._graphs(), counts, strict=True))
            for name in self._driver(number, graph.passes()[:count], eager=True).leaves
        ]
        if self._is_good("all regions by Inductor", self._mixed(counts, names)):
            draws = any(_drawn(graph.program.graph_module) for graph in self._graphs())
            text = "nothing makes a difference: the results are good at every stage"
            return Finding("nothing", text=text + _OTHER_DRAWS * draws)
        suspects = list(names)
        while len(suspects) > 1:
            first, second = suspects[: len(suspects) // 2], suspects[len(suspects) // 2 :]
            for half in (first, second):
                if not self._is_good(f"{len(half)} of {len(names)} regions by Inductor", self._mixed(counts, half)):
                    suspects = half
                    break
            else:
                told = ", ".join(name for _, name in suspects)
                return Finding("regions together", text=f"only together make the difference, compiled: {told}")
        ((number, name),) = suspects
        text = f"the region {name} of graph {number + 1} differs once Inductor has compiled it"
        repro = self._repro(number, name, counts)
        drawn = _drawn(repro.module) if repro is not None else []
        text += f"; it draws random numbers ({', '.join(drawn)}), which may be all of it" if drawn else ""
        return Finding("region", name, number, text=text, repro=repro)

    def _driver(self, number: int, passes: Sequence[Any], *, eager: bool) -> Driver:
        key = (number, int(eager))
        if key not in self._drivers:
            self._drivers[key] = self._graphs()[number].driver(passes, None if eager else _SAME_DRAWS)
        driver = self._drivers[key]
        driver.reset()
        return driver

    def _mixed(self, counts: Sequence[int], compiled: Iterable[tuple[int, str]]) -> Form:
        """Every graph after all of its passes; these regions by Inductor, the others operator by operator."""
        graphs, wanted = self._graphs(), set(compiled)

        def form(graph: CapturedGraph) -> Callable[..., Any]:
            number = graphs.index(graph)
            passes = graph.passes()[: counts[number]]
            names = {name for place, name in wanted if place == number}
            eager, own = self._driver(number, passes, eager=True), self._driver(number, passes, eager=False)
            return partial(_run_mixed, eager, own, names)

        return form

    def _repro(self, number: int, name: str, counts: Sequence[int]) -> Region | None:
        """The region with the arguments of its first call."""
        graph = self._graphs()[number]
        passes = graph.passes()[: counts[number]]
        driver = self._driver(number, passes, eager=True)
        seen: list[tuple[Any, ...]] = []

        def watch(called: str, function: Callable[..., Any], *args: Any) -> Any:
            if called == name and not seen:
                seen.append(args)
            return function(*args)

        with driver.watched(watch):
            driver(*graph.args)
        return Region(name, driver.leaves[name].graph(), graph.program.name, seen[0]) if seen else None


def _drawn(module: fx.GraphModule) -> list[str]:
    """The operators of a graph that draw random numbers, each once."""
    graphs = [each.graph for each in module.modules() if isinstance(each, fx.GraphModule)]
    found = [str(node.target) for graph in graphs for node in graph.nodes if draws_random(node)]
    return list(dict.fromkeys(found))


def _run_mixed(eager: Driver, own: Driver, names: set[str], *args: Any) -> Any:
    def watch(name: str, function: Callable[..., Any], *given: Any) -> Any:
        memo = eager.sites.memos.get(name)
        if (memo.region if memo else name) not in names:
            return function(*given)
        return (own.memos if memo else own.leaves)[name](*given)

    with eager.watched(watch):
        return eager(*args)
