"""The error of a rollout as it runs: every call at the setting in force is made exactly beside it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

from torch import Tensor

from lightint_compile.compiled import Compared, CompiledGraph
from lightint_compile.error_budget.deviation import deviation_of, results_of
from lightint_compile.error_budget.history_feedback import fed_back, replaced
from lightint_compile.error_budget.own_buffers import OwnBuffers
from lightint_compile.error_budget.repeated_calls import same_randomness, unwritten


class HasSettings(Protocol):
    """A graph that can be run at the setting in force and exactly."""

    @property
    def chunk(self) -> int | None:
        """The chunk that was decided last."""

    @property
    def writes(self) -> tuple[int, ...] | None:
        """Which inputs the graph writes to; ``None`` where that is not known."""

    def plain(self, *args: Any) -> Any:
        """Run the setting in force."""

    def at(self, rung: int) -> CompiledGraph:
        """The graph at one setting; 0 is exact."""


class Comparing:
    """An observer whose caller gets the results of the settings in force.

    Where the rollout feeds its results back as inputs, the exact calls are given exact results, and buffers that calls
    write to as exact calls would have left them, so that the error is that of the rollout up to there; otherwise it is
    that of the call alone.

    Args:
        graphs: those that are compared; others run normally.

    Attributes:
        calls: the chunk and the deviation of every call, in order.
    """

    def __init__(self, graphs: Collection[CompiledGraph]) -> None:
        self.calls: list[Compared] = []
        self._graphs: set[object] = set(graphs)
        self._exact: list[list[Tensor]] = []
        self._own: list[list[Tensor]] = []
        self._buffers = OwnBuffers()

    def run(self, graph: HasSettings, args: Sequence[Any]) -> Any:
        """Run one call exactly, then at the setting in force."""
        if graph not in self._graphs:
            return graph.plain(*args)
        given, written = replaced(args, fed_back(args, self._own), self._exact), graph.writes or ()
        self._buffers.begin(args, written)
        with same_randomness(args) as again, unwritten(args, "compared with exact results", graph.writes):
            self._exact.append(_kept(graph.at(0)(*self._buffers.given("exact", given))))
            again()
            outputs = graph.plain(*args)
        self._buffers.end(args, written)
        self._own.append(_kept(outputs))
        self.calls.append((graph.chunk, deviation_of(self._exact[-1], self._own[-1])))
        return outputs


def _kept(outputs: Any) -> list[Tensor]:
    return [result.clone() for result in results_of(outputs)]
