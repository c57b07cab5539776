"""A compiled graph with a budget: one of several settings is in force, and calibration can run all of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

from lightint_compile.budget.ladder import Rung
from lightint_compile.budget.limits import Budget
from lightint_compile.budget.table import Table, load
from lightint_compile.graphs import CompiledGraph
from lightint_compile.passes.remarks import Numerics, Remark, RemarkKind

log = logging.getLogger(__name__)


class Observer(Protocol):
    """What a calibration is to the graphs that run during it."""

    def run(self, graph: BudgetedGraph, args: Sequence[Any]) -> Any:
        """Run one call of ``graph``, and measure."""


OBSERVER: ContextVar[Observer | None] = ContextVar("lightint calibration", default=None)
"""The calibration of this thread, while one runs."""

#: Compiles the graph at one setting, outside of Dynamo's trace; ``None`` where it cannot be rewritten.
Build = Callable[[int], CompiledGraph | None]


class BudgetedGraph(CompiledGraph):
    """One graph of a module that was compiled with a budget.

    Attributes:
        ladder: the settings from exact to fast.
        budget: what results must keep.
        path: where its calibration is kept; ``None`` for a graph whose code cannot be hashed.
        rung: the number of the setting in force.
        calibrated: whether a calibration chose it.
    """

    def __init__(
        self,
        start: CompiledGraph,
        inputs: Sequence[Any],
        rung: int,
        build: Build,
        ladder: Sequence[Rung],
        budget: Budget,
        path: Path | None,
    ) -> None:
        super().__init__(start.function, start.section, inputs, driver=start.driver)
        self.ladder, self.budget, self.path = tuple(ladder), budget, path
        self.rung, self.calibrated = rung, rung > 0
        self._build = build
        self._variants = {rung: start.unlisted()}

    def __call__(self, *args: Any) -> Any:
        """Run the setting in force, or under a calibration what it asks for."""
        observer = OBSERVER.get()
        return self.function(*args) if observer is None else observer.run(self, args)

    @property
    def setting(self) -> str:
        """The setting in force."""
        return str(self.ladder[self.rung])

    def at(self, rung: int) -> CompiledGraph:
        """The graph compiled at one setting, at first use. One that approximates nothing here is the exact one."""
        if rung not in self._variants:
            built = self._build(rung)
            exact = rung and (built is None or not _approximates(built))
            self._variants[rung] = self.at(0) if exact else built.unlisted() if built else self._variants[self.rung]
        return self._variants[rung]

    def use(self, rung: int, note: str) -> None:
        """Put one setting in force, and let go of the others; ``note`` says why in the report."""
        variant = self.at(rung)
        self._variants = {rung: variant}
        self.rung, self.calibrated = rung, True
        self.function, self.driver = variant.function, variant.driver
        self.section = variant.section.with_remark(_remark("calibrated", note))

    def reset(self) -> None:
        """Forget what every compiled setting keeps between calls."""
        for variant in self._variants.values():
            if variant.driver is not None:
                variant.driver.reset()


def stored_choice(path: Path | None, ladder: Sequence[Rung], budget: Budget) -> int:
    """The setting that a calibration on disk chooses for the budget; 0 where there is none."""
    table = load(path) if path is not None else None
    return 0 if table is None else Table.of(ladder).joined(table).choice(budget)


def start_remark(rung: int, ladder: Sequence[Rung], budget: Budget) -> Remark:
    """What the report and the log say of the setting that a graph starts at."""
    if rung:
        return _remark("calibrated", f"runs at {ladder[rung]}: calibrated for {budget}")
    return _remark("uncalibrated", f"runs exactly: {budget} is not calibrated", "lightint_compile.calibrate(...)")


def _remark(rule: str, message: str, hint: str = "") -> Remark:
    return Remark(kind=RemarkKind.ANALYSIS, pass_name="budget", rule=rule, message=message, hint=hint)


def _approximates(built: CompiledGraph) -> bool:
    applied = [remark for remark in built.section.remarks if remark.kind is RemarkKind.APPLIED]
    return any(remark.numerics is Numerics.APPROXIMATE for remark in applied)
