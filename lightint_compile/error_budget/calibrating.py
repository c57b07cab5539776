"""Calibration: the caller's rollout, run once or twice, tells which settings keep the budget."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lightint_compile.error_budget.budgeted_graph import OBSERVER, Observer
from lightint_compile.error_budget.rollout_spread import CONFIDENCE, COVERED
from lightint_compile.error_budget.table import Measured, Table, save
from lightint_compile.error_budget.trial_rollout import Confirming, Measuring
from lightint_compile.errors import BudgetError, check_callable
from lightint_compile.options.error_limits import Budget

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """What came of a calibration.

    Attributes:
        budget: what had to be kept.
        table: what was measured.
        chosen: the number of the setting in force, 0 for exact.
        rollouts: how many were run.
        calls: how many were measured in one.
        beginnings: how many of these were given no earlier result, and began a rollout of their own. From six that
            differ on, what others stay within is told from their spread (:attr:`Measured.spread`), and has to fit the
            budget. Of fewer, all that is known is that the worst of ``n`` is exceeded by the next, if it is drawn
            alike, once in ``n + 1`` (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005).
            Errors of one rollout are alike, so ``n`` counts rollouts.
        whole_rollout: whether the errors of the chosen setting are those of a rollout that used it throughout; else
            they are those of single calls, or of a rollout in which faster settings were given up on the way.
    """

    budget: Budget
    table: Table
    chosen: int
    rollouts: int
    calls: int
    beginnings: int
    whole_rollout: bool

    @property
    def setting(self) -> str:
        """The setting in force, as text: the passes that rewrite something in this module."""
        return self.table.rows[self.chosen - 1].text if self.chosen else "exact"

    def __str__(self) -> str:
        marks = (">" if number == self.chosen else " " for number in range(1, len(self.table.rows) + 1))
        known = {row.text: f"{mark} {row}" for mark, row in zip(marks, self.table.rows, strict=True)}
        rows = [row for text, row in known.items() if text != "exact"]
        kind = "whole rollouts" if self.whole_rollout else "single calls"
        told = f"{self._measured}, errors of {kind}; {self._promised}"
        return "\n".join([f"{self.budget}: {self.setting} ({told})", *rows])

    @property
    def _promised(self) -> str:
        if self.chosen and self.table.rows[self.chosen - 1].spread is not None:
            return f"{COVERED:.0%} of {self._others} stay within the budget, with {CONFIDENCE:.0%} confidence"
        return f"of {self._others} one in {self.beginnings + 1} may be worse"

    @property
    def _measured(self) -> str:
        rollouts = "1 rollout" if self.beginnings == 1 else f"{self.beginnings} rollouts"
        return f"{self.calls} calls in {rollouts}" if self.beginnings < self.calls else f"{self.calls} calls"

    @property
    def _others(self) -> str:
        return "other rollouts" if self.beginnings < self.calls else "others, if they are drawn alike,"


def calibrate(compiled: Any, rollout: Callable[[], object]) -> Calibration:
    """Find the fastest setting of the ladder whose errors fit the budget that ``compiled`` was compiled with.

    ``rollout`` is run once, with exact results, while every setting is tried beside them. Where the rollout feeds its
    results back as inputs, each setting is given its own, and that is all. Otherwise errors were those of single calls,
    and ``rollout`` is run again at the chosen setting; one that exceeds the budget is given up for the one before it.
    The setting stays in force in this process, and what was measured is kept on disk for the next.

    What it promises: in the calibrated rollouts the error was within the budget, with a margin of a fifth. Where six or
    more rollouts were calibrated on, 95 % of all rollouts of their kind are within it too, with 95 % confidence; of
    fewer, others may do worse. Drift checks go on at run time. Calibrate on typical rollouts.

    Args:
        compiled: made by ``torch.compile(..., backend="lightint", options={"max_relative_error": 0.05})``.
        rollout: runs a rollout with ``compiled``. Both times it must make the same calls with the same noise; torch's
            default generators are set back for the second.

    Raises:
        BudgetError: nothing approximate keeps the budget. The module runs exactly from then on.
        InputError: ``rollout`` cannot be called.
        StateError: no graph of ``compiled`` with a budget ran, or the second rollout was another.
    """
    check_callable("rollout", rollout, "calibrate(compiled, lambda: run_rollout(compiled))")
    state = _random_state()
    measuring = Measuring(compiled)
    _observed(measuring, rollout)
    table, rollouts, whole = measuring.table, 1, measuring.followed
    chosen = table.choice(measuring.budget)
    if chosen and not whole:
        _set_random_state(state)
        confirming = Confirming(measuring, chosen)
        _observed(confirming, rollout)
        confirming.check_all_ran()
        table, rollouts = confirming.table, 2
        kept = min(confirming.rung, table.choice(measuring.budget))
        chosen, whole = kept, kept == chosen
    acting = frozenset[str]().union(*(graph.applied for graph in measuring.graphs))
    table = table.told([str(rung.among(acting)) for rung in measuring.graphs[0].ladder[1:]])
    seen = len(measuring.results), measuring.beginnings
    calibration = Calibration(measuring.budget, table, chosen, rollouts, *seen, whole)
    _put_in_force(calibration, measuring)
    return calibration


def _observed(observer: Observer, rollout: Callable[[], object]) -> None:
    token = OBSERVER.set(observer)
    try:
        rollout()
    finally:
        OBSERVER.reset(token)


def _put_in_force(calibration: Calibration, measuring: Measuring) -> None:
    nearest = _nearest(calibration)
    chosen = 0 if nearest else calibration.chosen
    text = calibration.setting if chosen else "exact"
    note = f"{calibration.budget} was calibrated: runs at {text}"
    for graph in measuring.graphs:
        graph.reset()
        graph.use(chosen, note, measuring.weights[graph], text)
        if graph.path is not None and graph.is_at_home:
            save(calibration.table, graph.path)
    log.info("%s", calibration)
    if nearest is not None:
        for graph in measuring.idle:  # calibrated before, and it has to be exact as a whole
            graph.use(0, note, graph.weights)
        raise BudgetError(
            f"nothing approximate keeps {calibration.budget}",
            where="options",
            why=f"the nearest is {nearest}",
            fix=f"{_way_out(calibration.budget, nearest)}; until then the module runs exactly",
        )


def _way_out(budget: Budget, nearest: Measured) -> str:
    reachable = budget.reached_by(nearest.counted)
    relative, psnr = reachable.max_relative_error, reachable.min_psnr
    if (relative is None or relative < 1) and (psnr is None or math.isfinite(psnr)):
        return f"reachable is {reachable}"
    return "no budget is that large: calibrate on a rollout whose results are finite, and not all zero"


def _nearest(calibration: Calibration) -> Measured | None:
    """What is reachable where nothing that keeps the budget changes anything; ``None`` where the budget is met."""
    rows, smallest = calibration.table.rows, calibration.table.smallest()
    kept = rows[: calibration.chosen]
    return smallest if smallest is not None and smallest not in kept else None


def _random_state() -> tuple[torch.Tensor, list[torch.Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _set_random_state(state: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
