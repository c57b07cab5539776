"""A compiled graph with a budget: one of several settings is in force, and calibration can run all of them."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from lightint_compile.compiled import Compared, CompiledGraph
from lightint_compile.error_budget.calibrated_weights import Weights
from lightint_compile.error_budget.comparing import Comparing
from lightint_compile.error_budget.table import Table, load
from lightint_compile.fallback import Recovering
from lightint_compile.options.error_limits import Budget, Deviation
from lightint_compile.options.ladder import Setting
from lightint_compile.passes.ir.decision_points import PointSpec, StepPoint
from lightint_compile.passes.ir.remarks import Remark, RemarkKind
from lightint_compile.passes.step_cache import StepCache
from lightint_compile.reporting.section import Section

log = logging.getLogger(__name__)


class Observer(Protocol):
    """What a calibration or a comparison is to the graphs that run during it."""

    def run(self, graph: BudgetedGraph, args: Sequence[Any]) -> Any:
        """Run one call of ``graph``, and measure."""


OBSERVER: ContextVar[Observer | None] = ContextVar("lightint observer", default=None)
"""The calibration or comparison of this thread, while one runs."""


class Builds(Protocol):
    """Makes a graph at other settings, outside of Dynamo's trace."""

    def applied(self) -> frozenset[str]:
        """The approximate passes that rewrite something in this graph at the last setting."""

    def build(self, rung: int) -> CompiledGraph | None:
        """The graph at one setting; ``None`` where it cannot be rewritten."""

    def section(self, rung: int) -> Section:
        """What the report says of the graph at one setting."""

    def release(self) -> None:
        """Let go of what was only kept for further settings."""


class BudgetedGraph(CompiledGraph):
    """One graph of a module that was compiled with a budget.

    Modules of one class share compiled code. A calibration is that of one of them: others run exactly.

    Attributes:
        ladder: the settings from exact to fast.
        budget: what results must keep.
        path: where its calibration is kept; ``None`` for a graph whose code cannot be hashed.
        rung: the number of the setting in force.
        weights: those that it is in force for.
    """

    def __init__(
        self,
        start: CompiledGraph,
        inputs: Sequence[Any],
        builds: Builds,
        ladder: Sequence[Setting],
        budget: Budget,
        path: Path | None,
        rung: int = 0,
        text: str = "",
        weights: Sequence[int] = (),
    ) -> None:
        super().__init__(start.function, start.section, inputs, driver=start.driver)
        self.ladder, self.budget, self.path = tuple(ladder), budget, path
        self.rung, self._builds, self._text = rung, builds, text
        self._places = tuple(weights)
        self._home = self.weights = self.weights_in(inputs)
        self._start = _unfollowing(start.unlisted())
        self._borrowed: set[CompiledGraph] = set()

    def __call__(self, *args: Any) -> Any:
        """Run the setting in force, or what an observer asks for."""
        observer = OBSERVER.get()
        return self.plain(*args) if observer is None else observer.run(self, args)

    def plain(self, *args: Any) -> Any:
        """Run the setting in force; with weights that it was not calibrated for, exactly."""
        if not self.rung or self.weights.are(self.weights_in(args)):
            return self.run(args)
        self.tell_siblings(args, exactly=True)
        if self._effect(0) not in self._variants:
            log.info("%s runs exactly with weights that it was not calibrated for", self.section.name)
        return self.at(0)(*args)

    def weights_in(self, args: Sequence[Any]) -> Weights:
        """The module's weights among the arguments of a call."""
        return Weights.of(args, self._places)

    @property
    def writes(self) -> tuple[int, ...] | None:
        """Which inputs the graph writes to, in all settings alike; ``None`` for one that was not rewritten."""
        return None if self._start.driver is None else self._start.driver.writes.positions

    @property
    def setting(self) -> str:
        """The setting in force, by the passes that rewrite something in the module where that is known."""
        return self._text or str(self.ladder[self.rung])

    @property
    def errors(self) -> dict[str, float]:
        """The errors that the budget allows, and the worst that calibration measured at the setting in force."""
        allowed = {"allowed": self.budget.max_relative_error, "allowed dB": self.budget.min_psnr}
        rows = stored(self.path, self.ladder).rows
        measured = rows[self.rung - 1].deviation if self.rung else Deviation()
        own = {"calibrated": measured.relative, "calibrated dB": measured.psnr}
        found = {**allowed, **{name: value for name, value in own.items() if self.rung}}
        return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}

    @contextmanager
    def comparing(self, graphs: Sequence[CompiledGraph]) -> Iterator[Sequence[Compared]]:
        """See :meth:`CompiledGraph.comparing`."""
        observer = Comparing(graphs)
        token = OBSERVER.set(observer)
        try:
            yield observer.calls
        finally:
            OBSERVER.reset(token)

    def at(self, rung: int) -> CompiledGraph:
        """The graph at one setting, made at first use. Settings that give the same graph are one."""
        effect = self._effect(rung)
        if effect not in self._variants:
            self._variants[effect] = self._with_drift(rung, self._nearest(rung))
        return self._variants[effect]

    def use(self, rung: int, note: str, weights: Weights, text: str = "") -> None:
        """Put one setting in force for some weights, and let go of others; ``note`` is for the report.

        Args:
            text: what the setting amounts to.
        """
        self._start, self.rung, self.weights, self._text = self.at(rung), rung, weights, text
        if self._start in self._borrowed:
            self._start.section = self._builds.section(rung)
        self._variants, self._borrowed = {self._effect(rung): self._start}, set()
        self._builds.release()
        self.function, self.driver = self._start.function, self._start.driver
        if self._siblings is not None:
            self.join(self._siblings)
        self.section = self._start.section.with_remark(_remark("calibrated", note))

    @property
    def is_at_home(self) -> bool:
        """Whether the setting in force is for the weights that the graph was captured with, as its file is."""
        return self.weights.are(self._home)

    def reset(self) -> None:
        """Forget what every compiled setting keeps between calls."""
        for variant in self._variants.values():
            if variant.driver is not None:
                variant.driver.reset()

    @cached_property
    def applied(self) -> frozenset[str]:
        """The approximate passes that rewrite something in this graph."""
        return self._builds.applied()

    @cached_property
    def _variants(self) -> dict[Setting, CompiledGraph]:
        return {self._effect(self.rung): self._start}

    def _effect(self, rung: int) -> Setting:
        return self.ladder[rung].among(self.applied)

    def _nearest(self, rung: int) -> int:
        """The last setting that differs from ``rung`` in the bound on drift at most, which the driver looks at."""
        wanted = _without_drift(self._effect(rung))
        return max(r for r in range(len(self.ladder)) if _without_drift(self._effect(r)) == wanted)

    def _with_drift(self, rung: int, nearest: int) -> CompiledGraph:
        """Setting ``rung`` made of one that is compiled, now or before; compiled itself where that is no other."""
        if self._effect(nearest) not in self._variants:
            built = self._builds.build(nearest)
            self._variants[self._effect(nearest)] = self._start if built is None else _unfollowing(built.unlisted())
        variant = self._variants[self._effect(nearest)]
        if self._effect(nearest) == self._effect(rung) or variant.driver is None:
            return variant
        drift = self.ladder[rung].thresholds.get("drift", StepCache.drift)
        points = {name: _drifting(spec, drift) for name, spec in variant.driver.decisions.points.items()}
        driver = variant.driver.with_points(points)
        function = variant.function.around(driver) if isinstance(variant.function, Recovering) else driver
        borrowed = _unfollowing(CompiledGraph(function, variant.section, (), driver=driver).unlisted())
        self._borrowed.add(borrowed)
        return borrowed


def _unfollowing(graph: CompiledGraph) -> CompiledGraph:
    """A graph that reuses no step of a loop outside, which no calibration measures."""
    if graph.driver is not None:
        graph.driver.decisions.unfollow()
    return graph


def _without_drift(effect: Setting) -> tuple[tuple[str, dict[str, float]], ...]:
    return tuple((name, {key: value for key, value in given if key != "drift"}) for name, given in effect.runs)


def _drifting(spec: PointSpec, drift: float | None) -> PointSpec:
    return dataclasses.replace(spec, drift=drift) if isinstance(spec, StepPoint) else spec


def stored(path: Path | None, ladder: Sequence[Setting]) -> Table:
    """What calibrations on disk measured of a ladder; empty rows where there are none."""
    table = load(path) if path is not None else None
    return Table.of(ladder).joined(table)


def start_remark(table: Table, budget: Budget) -> Remark:
    """What the report and the log say of the setting that a graph starts at."""
    rung = table.choice(budget)
    if not rung:
        return uncalibrated(budget)
    hint = "calibrate again: faster ones were not measured to the end" if table.may_allow_more(budget) else ""
    return _remark("calibrated", f"runs at {table.rows[rung - 1].text}: calibrated for {budget}", hint)


def uncalibrated(budget: Budget) -> Remark:
    """What is said of a graph that no calibration chose a setting for."""
    return _remark("uncalibrated", f"runs exactly: {budget} is not calibrated", "lightint_compile.calibrate(...)")


def _remark(rule: str, message: str, hint: str = "") -> Remark:
    return Remark(kind=RemarkKind.ANALYSIS, pass_name="budget", rule=rule, message=message, hint=hint)
