"""Error budgets, calibrated on some walks and judged on others: which setting each chooses, and whether it is kept.

A calibration is a measurement, not a bound. Here is what it is worth: rollouts through scenes that it never saw, each
chunk's error against the exact setting's from the same noise, as a budget means it, and what each setting loses to the
truth. Eager's error is what kernels round otherwise, which in 16 bits adds up along a rollout.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lightint_compile.bench.about import about, machine, write
from lightint_compile.compiled import CompiledGraph
from lightint_compile.error_budget.budgeted_graph import BudgetedGraph, stored
from lightint_compile.error_budget.calibrating import calibrate
from lightint_compile.error_budget.table import Measured, Table
from lightint_compile.errors import BudgetError, InputError, OptionError, StateError
from lightint_compile.options import LightintOptions
from lightint_compile.options.error_limits import Budget, Deviation
from lightint_compile.options.ladder import ladder_of

from .asked import checked_families, true_world
from .calibration_size import by_size
from .job import DTYPES, Judging, Plan, settings_of
from .metrics import check_torchmetrics, mean
from .results import Result, loss_of
from .rolling import roll
from .true_world import TrueWorld, Walk
from .variants import EAGER, Setup, Variant, variant_of
from .work_file import WorkFile

BUDGETS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
"""Largest relative errors that are asked for unless told otherwise."""

LARGEST = 0.99
"""The budget of calibrations: every setting is measured to the end, or is as far off as the result is large."""

EXACT = 1e-9
"""The budget of the exact setting: it runs before anything is calibrated, and without a calibration all is exact."""

SEEN = 128
"""The number of the first scene that calibrations see; those below are held out."""


@dataclass(frozen=True)
class Sweep:
    """Which budgets are judged, and what they are calibrated on.

    Attributes:
        preset: whose settings a budget chooses from.
        budgets: largest relative errors of a chunk.
        calibrated: scenes of each family that calibrations see.
    """

    preset: str = "all"
    budgets: Sequence[float] = BUDGETS
    calibrated: int = 1

    def checked(self, plan: Plan) -> None:
        """Raise where a budget is none, or scenes would be both seen and held out."""
        if not self.budgets or not all(0 < budget < 1 for budget in self.budgets):
            why, fix = (
                f"given are {', '.join(map(str, self.budgets)) or 'none'}",
                "give shares between 0 and 1, as 0.05",
            )
            raise OptionError("these are no error budgets", where="--budget", why=why, fix=fix)
        if max(plan.scenes, self.calibrated) > SEEN:
            why = f"{SEEN} scenes are held out and {SEEN} are calibrated on"
            raise InputError("there are not as many scenes", where="--mazes", why=why, fix=f"give at most {SEEN}")
        if len(ladder_of(LightintOptions(preset=self.preset, max_relative_error=LARGEST))) == 1:
            why, fix = "it approximates nothing", "name another, as all or published"
            raise OptionError(f"{self.preset} has no settings to choose from", where="--preset", why=why, fix=fix)


def judge_budgets(
    plan: Plan, sweep: Sweep, json_file: Path | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Calibrate once, then roll out at every setting that a budget chooses.

    Besides the budgets that are asked for, the smallest that chooses each setting is judged.

    Kernels and calibrations are kept in a folder of their own for as long as it takes, so that neither the user's
    calibrations count here nor these ones there.

    Args:
        plan: its scenes are the held-out ones; its variants are not read.

    Returns:
        Plain data, also written to the file: ``settings``, ``about``, ``ladder`` (a row a setting), ``budgets``, and
        ``calibration_sizes`` (a row a setting).

    Raises:
        OptionError: a budget or a preset that there is not.
        InputError: as of :func:`~.job.evaluate`.
    """
    check_torchmetrics()
    families, world = checked_families(plan.families), true_world(plan.model, plan.device, plan.seed, plan.weights)
    plan.checked(world)
    sweep.checked(plan)
    own = {"preset": sweep.preset, "budgets": sorted(sweep.budgets), "calibrated_scenes": sweep.calibrated}
    settings = {**settings_of(plan, world), "scenes": plan.scenes, **own}
    work = WorkFile(json_file, {**machine(plan.device), **settings})
    exact = _at(sweep.preset, EXACT)
    judging = Judging(plan, world, families, work, console or Console(), reference=exact.name)
    with _own_cache():
        judging.run([exact])
        table = _calibrated(judging, _at(sweep.preset, LARGEST), sweep.calibrated)
        chosen = {budget: table.choice(Budget(budget)) for budget in sorted({*sweep.budgets, *edges(table)})}
        first = {rung: budget for budget, rung in reversed(chosen.items()) if rung}
        variants = {rung: _at(sweep.preset, budget) for rung, budget in sorted(first.items())}
        judging.run([variant_of(EAGER), *variants.values()])
    rolled = {0: exact.name, **{rung: variant.name for rung, variant in variants.items()}}
    found = {"settings": settings, "about": about(plan.device), **_judged(work.results, table, chosen, rolled)}
    if json_file is not None:
        write(json_file, found, plan.device)
    work.close()
    return found


def edges(table: Table) -> list[float]:
    """The smallest budget that chooses each setting which any does: the one that is exceeded most easily."""
    found, worst = [], Deviation()
    for row in table.rows:
        worst = worst.worst(row.counted)
        smallest = Budget(LARGEST).reached_by(worst).max_relative_error
        if row.complete and smallest is not None and 0 < smallest < LARGEST:
            found.append(float(f"{smallest:.2g}"))  # it was rounded up to two digits, in binary
    return sorted(set(found))


def _at(preset: str, budget: float) -> Variant:
    return variant_of(f"{preset}:max_relative_error={budget:g}")


@contextlib.contextmanager
def _own_cache() -> Iterator[None]:
    """Nothing that was kept on disk before is found, and nothing kept inside stays."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def _calibrated(judging: Judging, variant: Variant, scenes: int) -> Table:
    """What a calibration along the walks of other scenes measured; the worst of each setting counts."""
    plan, world = judging.plan, judging.world
    numbers = range(SEEN, SEEN + scenes)
    walks = [world.walk(family, number, plan.latents) for family in judging.families for number in numbers]
    with variant.opened(Setup(world, plan.device, DTYPES[plan.dtype], plan.delegate)) as opened:

        def rolled() -> None:
            for walk in walks:
                roll(opened, world, walk, _given(world, walk, plan.given), plan.seed + walk.number, plan.device)
                judging.console.print(f"calibrating: {walk.family} {walk.number}", highlight=False)

        with contextlib.suppress(BudgetError):  # nothing approximate is near enough: that is a result as well
            calibrate(opened.call, rolled)
        graphs = [graph for graph in CompiledGraph.of(opened.module) if isinstance(graph, BudgetedGraph)]
        if not graphs:
            why = "its graphs have nothing to approximate, or it ran none"
            raise StateError(f"{variant.name} has no budget on {plan.model}", where="--preset", why=why)
        return stored(graphs[-1].path, graphs[-1].ladder)


def _given(world: TrueWorld, walk: Walk, chunks: int) -> Any:
    frames = world.model.spec.frames(chunks)
    return world.encode(world.truth(walk)).cpu()[:, :, :frames]


def _judged(
    results: Sequence[Result], table: Table, chosen: Mapping[float, int], rolled: Mapping[int, str]
) -> dict[str, Any]:
    """The rows of all tables; ``rolled`` names the variant of every setting that is chosen, 0 is exact."""
    eager = {each.walk: each for each in results if each.variant == EAGER}
    groups = {rung: [each for each in results if each.variant == name] for rung, name in rolled.items()}
    before = mean([time for each in eager.values() for time in each.milliseconds])
    ladder = [_setting_row(Measured(EAGER), list(eager.values()), eager, before)]
    ladder += [_setting_row(_measured(rung, table), groups[rung], eager, before) for rung in sorted(groups)]
    budgets = [_budget_row(*each, table, groups) for each in sorted(chosen.items())]
    sizes = [_sizes_row(_measured(rung, table), groups[rung]) for rung in sorted(groups) if rung]
    return {"ladder": ladder, "budgets": budgets, "calibration_sizes": sizes}


def _measured(rung: int, table: Table) -> Measured:
    return table.rows[rung - 1] if rung else Measured("exact")


def _setting_row(
    row: Measured, group: Sequence[Result], eager: Mapping[Any, Result], before: float | None
) -> dict[str, Any]:
    errors = _errors(group)
    now = mean([time for each in group for time in each.milliseconds])
    computed = sum(each.computed_steps or 0 for each in group)
    return {
        "setting": row.text,
        "calibrated_worst": row.deviation.relative,
        "calibrated_spread": None if row.spread is None else row.spread.relative,
        "chunks": len(errors),
        "error": mean(errors),
        "error_worst": max(errors, default=None),
        "errors": {f"{each.family}-{each.number}": each.relative_errors for each in group},
        "psnr_truth_loss": mean([loss_of(each, eager) for each in group]),
        "psnr_truth_revisit_loss": mean([loss_of(each, eager, again=True) for each in group]),
        "steps_per_chunk": computed / max(1, len(errors)),
        "milliseconds_per_chunk": now,
        "speed": before / now if before and now else None,
    }


def _sizes_row(row: Measured, group: Sequence[Result]) -> dict[str, Any]:
    sizes = by_size([each.relative_errors for each in group])
    return {"setting": row.text, "sizes": {walks: each._asdict() for walks, each in sizes.items()}}


def _budget_row(budget: float, rung: int, table: Table, groups: Mapping[int, Sequence[Result]]) -> dict[str, Any]:
    errors = _errors(groups[rung])
    over = sum(error > budget for error in errors)
    walks_over = sum(any(error > budget for error in each.relative_errors) for each in groups[rung])
    return {
        "budget": budget,
        "rung": rung,
        "setting": _measured(rung, table).text,
        "chunks": len(errors),
        "over": over,
        "share_over": over / len(errors) if errors else 0.0,
        "walks": len(groups[rung]),
        "walks_over": walks_over,
        "error_worst": max(errors, default=0.0),
    }


def _errors(group: Sequence[Result]) -> list[float]:
    return [error for each in group for error in each.relative_errors]
