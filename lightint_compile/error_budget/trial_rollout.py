"""The calls of a rollout that is calibrated: settings are tried beside exact results, or one is confirmed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightint_compile.compiled import CompiledGraph
from lightint_compile.error_budget.budgeted_graph import BudgetedGraph
from lightint_compile.error_budget.calibrated_weights import Weights
from lightint_compile.error_budget.deviation import deviation_of, results_of
from lightint_compile.error_budget.history_feedback import Fed, fed_back, replaced
from lightint_compile.error_budget.own_buffers import OwnBuffers
from lightint_compile.error_budget.repeated_calls import owned, same_randomness, unwritten
from lightint_compile.error_budget.table import Table
from lightint_compile.errors import StateError
from lightint_compile.options.error_limits import MARGIN, Budget


class Measuring:
    """The first rollout: every call gives its exact results, and each setting is tried beside them.

    A setting that exceeds the budget is not tried in the rest of the rollout, and neither are those after it. Only the
    first that changes anything is measured to the end: its error is what is reachable.

    Args:
        compiled: the module whose graphs are calibrated; graphs of other modules run normally.

    Attributes:
        graphs: those that ran, in order.
        table: what was measured.
        results: the exact results of each call.
        beginnings: how many calls were given no earlier result.
        rollout: of each call, the number of the rollout that it belongs to, from 0.
        followed: whether every call after the first was given what its setting would have made itself.
        start: a fingerprint of the first call's inputs.
        weights: of each graph, those of the module.
    """

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        module = getattr(compiled, "_orig_mod", compiled)
        is_module = isinstance(module, torch.nn.Module)
        self._own_weights = set(map(id, (*module.parameters(), *module.buffers()))) if is_module else set()
        self.weights: dict[BudgetedGraph, Weights] = {}
        self.graphs: list[BudgetedGraph] = []
        self.results: list[list[Tensor]] = []
        self.beginnings = 0
        self.rollout: list[int] = []
        self.followed = True
        self.start: list[float] = []
        self._table: Table | None = None
        self._own: dict[int, list[list[Tensor]]] = {}
        self._buffers = OwnBuffers()

    @property
    def budget(self) -> Budget:
        """What has to be kept; that of every graph of the module."""
        return self._first.budget

    @property
    def table(self) -> Table:
        """See the class.

        Raises:
            StateError: nothing ran that has a budget.
        """
        _ = self._first
        assert self._table is not None
        return self._table

    @property
    def _first(self) -> BudgetedGraph:
        if not self.graphs:
            raise StateError(
                "there is nothing to calibrate",
                why="the rollout ran no graph of this module that has a budget and something to approximate",
                fix='compile with options={"max_relative_error": 0.05}, and run that module in the rollout',
            )
        return self.graphs[0]

    @property
    def idle(self) -> list[BudgetedGraph]:
        """The module's graphs with a budget that did not run."""
        known = CompiledGraph.of(self._compiled)
        return [each for each in known if isinstance(each, BudgetedGraph) and each not in self.graphs]

    def covers(self, graph: BudgetedGraph, args: Sequence[Any]) -> bool:
        """Whether a call belongs to the module; of its graphs, the first starts the table."""
        weights = graph.weights_in(args)
        if graph in self.graphs:
            return self.weights[graph].are(weights)
        of_another = self._own_weights.isdisjoint(each for each, *_ in weights.state)
        if of_another and self._own_weights and weights.state:
            return False
        if graph not in CompiledGraph.of(self._compiled):
            return False
        if self._table is None:
            self._table = Table.of(graph.ladder)
            self._own = {rung: [] for rung in range(1, len(graph.ladder))}
        graph.reset()
        self.weights[graph] = weights
        self.graphs.append(graph)
        return True

    def run(self, graph: BudgetedGraph, args: Sequence[Any]) -> Any:
        """Run one call exactly, and the settings beside it."""
        graph.tell_siblings(args, exactly=True)
        if not self.covers(graph, args):
            return graph.plain(*args)
        if not self.results:
            self.start = fingerprint(args)
        feedback, written = fed_back(args, self.results), graph.writes or ()
        self.beginnings += not (self._buffers.begin(args, written) or feedback)
        self.rollout.append(self.beginnings - 1)
        self.followed &= any(fed.is_all for fed in feedback) or not self.results
        with same_randomness(args) as again, unwritten(args, "calibrated", graph.writes):
            outputs = owned(graph.at(0)(*args))
            self.results.append([result.clone() for result in results_of(outputs)])
            for rung in list(self._own):
                if rung not in self._own:  # the one before it was just given up
                    break
                again()
                self._try(graph, rung, args, feedback)
        self._buffers.end(args, written)
        return outputs

    def _try(self, graph: BudgetedGraph, rung: int, args: Sequence[Any], feedback: Sequence[Fed]) -> None:
        exact, own = self.results[-1], self._own[rung]
        got = self._known(graph, rung)
        if got is None:
            given = self._buffers.given(rung, replaced(args, feedback, own))
            found = results_of(graph.at(rung)(*given))
            got = [result.clone() for result in found]
        own.append(got)
        row = self.table.rows[rung - 1].seen(deviation_of(exact, got), self.rollout[-1])
        self._table = self.table.replaced(rung, row)
        if not self.budget.allows(row.deviation):
            is_first = not any(self._differs(before) for before in range(1, rung))
            self._give_up(rung + is_first)

    def _known(self, graph: BudgetedGraph, rung: int) -> list[Tensor] | None:
        """The results of this call at a setting that has come to the same in every call so far."""
        tried = {0: self.results} | {before: own for before, own in self._own.items() if before < rung}
        for before, results in tried.items():
            same = all(one is two for one, two in zip(results, self._own[rung], strict=False))
            if same and graph.at(before) is graph.at(rung):
                return results[-1]
        return None

    def _differs(self, rung: int) -> bool:
        """Whether a setting's results so far are not the exact ones."""
        return self.table.rows[rung - 1].deviation.relative > 0

    def _give_up(self, first: int) -> None:
        for rung in [each for each in self._own if each >= first]:
            del self._own[rung]
            self._table = self.table.replaced(rung, self.table.rows[rung - 1].given_up())


class Confirming:
    """The second rollout: every call gives the results of one setting, compared with the exact ones of the first.

    A setting that exceeds its share of the budget is given up for the one before it, from the call on where that shows.

    Attributes:
        table: what was measured in both.
        rung: the setting in force.
    """

    def __init__(self, measured: Measuring, rung: int) -> None:
        self._measured, self.rung, self.table = measured, rung, measured.table
        self._first, self._calls = rung, 0
        for graph in measured.graphs:
            graph.reset()

    def run(self, graph: BudgetedGraph, args: Sequence[Any]) -> Any:
        """Run one call at the setting in force, or at the first below it whose result is within the budget."""
        graph.tell_siblings(args, exactly=True)
        if not self._measured.covers(graph, args):
            return graph.plain(*args)
        exact, written, buffers = self._expected(args), graph.writes or (), OwnBuffers()
        buffers.begin(args, written)
        with same_randomness(args) as again, unwritten(args, "calibrated", graph.writes):
            while True:
                outputs = graph.at(self.rung)(*args)
                if not self.rung or self._fits(exact, results_of(outputs)):
                    return outputs
                self.rung -= 1
                buffers.put_back(args, written)
                again()

    def _expected(self, args: Sequence[Any]) -> list[Tensor]:
        if self._calls == 0 and not _alike(fingerprint(args), self._measured.start):
            raise _another("it starts from other inputs", "draw the noise from a generator with a fixed seed")
        if self._calls == len(self._measured.results):
            raise _another("it makes more calls", "run the same rollout both times")
        self._calls += 1
        return self._measured.results[self._calls - 1]

    def _fits(self, exact: list[Tensor], got: list[Tensor]) -> bool:
        """Whether a result is near enough. Behind a faster setting's results the whole budget counts, and no row."""
        if [result.shape for result in exact] != [result.shape for result in got]:
            raise _another("its results have other shapes", "run the same rollout both times")
        row = self.table.rows[self.rung - 1].seen(deviation_of(exact, got), self._measured.rollout[self._calls - 1])
        given_up = self.rung < self._first
        fits = self._measured.budget.allows(row.deviation, 1.0 if given_up else MARGIN)
        if not (given_up and fits):
            self.table = self.table.replaced(self.rung, row)
        return fits

    def check_all_ran(self) -> None:
        """Raise :class:`StateError` for a rollout that ended early."""
        if self._calls != len(self._measured.results):
            raise _another("it makes fewer calls", "run the same rollout both times")


def _another(why: str, fix: str) -> StateError:
    return StateError("the second rollout of the calibration is not the first again", why=why, fix=fix)


def fingerprint(args: Sequence[Any]) -> list[float]:
    """Numbers that differ where the inputs of two calls do, weights left out."""
    tensors = [each for each in args if isinstance(each, Tensor) and not isinstance(each, torch.nn.Parameter)]
    real = [torch.view_as_real(each) if each.is_complex() else each for each in tensors]
    return [float(part) for each in real for part in (each.double().sum(), each.double().abs().sum())]


def _alike(left: list[float], right: list[float]) -> bool:
    return len(left) == len(right) and all(
        math.isclose(one, two, rel_tol=1e-6, abs_tol=1e-12) for one, two in zip(left, right, strict=True)
    )
