"""Options that cannot stand together, whatever each of them is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightint_compile.errors import OptionError
from lightint_compile.options.presets import DEFAULT_PRESET
from lightint_compile.options.table import names_of

if TYPE_CHECKING:
    from lightint_compile.options.values import LightintOptions


def check_together(options: LightintOptions) -> None:
    """Look at options that are right one by one.

    Raises:
        OptionError: two of them exclude each other, or one can do nothing beside another.
    """
    _check_who_sets_thresholds(options)
    _check_one_group(options)
    _check_not_both(options)
    _check_budget_of_something(options)
    _check_beside_something(options)


def _check_who_sets_thresholds(options: LightintOptions) -> None:
    thresholds = names_of(type(options), lambda row: row.threshold)
    given = [name for name in thresholds if getattr(options, name) is not None]
    if options.budget is None or options.budget.is_exact or not given:
        return
    stated = [name for name in ("max_relative_error", "min_psnr") if getattr(options, name) is not None]
    raise OptionError(
        f"{' and '.join(given)} cannot be set together with {' and '.join(stated)}",
        where=f"options[{given[0]!r}]",
        why="thresholds are what a budget is for: calibration sets them",
        fix=f"leave out {' and '.join(given)}, or {' and '.join(stated)}",
    )


def _check_one_group(options: LightintOptions) -> None:
    if options.gpus is not None and options.mesh is not None:
        raise OptionError(
            "gpus and mesh cannot be set together",
            where="options['mesh']",
            why="each says which ranks share the tokens",
            fix="leave out gpus",
        )
    if options.is_shared and options.budget is not None and not options.budget.is_exact:
        raise OptionError(
            "an error budget cannot be set for several ranks",
            where="options['gpus']",
            why="each rank would calibrate for itself, and ranks must run the same graph",
            fix="calibrate on one rank, and give the options that it chose",
        )


def _check_not_both(options: LightintOptions) -> None:
    if not (options.also and options.without):
        return
    from lightint_compile.passes.pipeline import Pipeline

    both = [step.name for step in Pipeline.parse(options.also).passes if step.name in options.without]
    if both:
        raise OptionError(
            f"{both[0]} is to run besides the others and to be left out",
            where="options['also']",
            why=f"options['without'] names {both[0]} too",
            fix="name it in one of them",
        )


def _check_budget_of_something(options: LightintOptions) -> None:
    """A budget of nothing is kept by any program, Inductor's too."""
    if options.runs_nothing and options.budget is not None and not options.budget.is_exact:
        given = "max_relative_error" if options.max_relative_error is not None else "min_psnr"
        raise OptionError(
            f'{given} can do nothing under the preset "off"',
            where=f"options[{given!r}]",
            why="a budget chooses among approximate passes, and none runs",
            fix=f'leave out {given}, or choose the preset "{DEFAULT_PRESET}"',
        )


def _check_beside_something(options: LightintOptions) -> None:
    """Passes beside those of a preset whose graphs nobody looks at would never run."""
    if options.runs_nothing and options.also:
        raise OptionError(
            f'{options.also} cannot run under the preset "off"',
            where="options['also']",
            why="it hands every graph to Inductor as it is",
            fix=f'leave out also, or choose the preset "{DEFAULT_PRESET}"',
        )
