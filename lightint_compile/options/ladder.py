"""The settings that a budget chooses from, exact to fast: each approximates all that the one before does, and more.

A budget takes the last setting up to which all errors fit. A larger one therefore never takes an earlier setting, and
so never does more work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightint_compile.options.pipelines import pipeline_of
from lightint_compile.options.presets import preset_of
from lightint_compile.options.values import LightintOptions, forwarded

if TYPE_CHECKING:
    from lightint_compile.passes.pipeline import Pipeline

LADDER: tuple[Mapping[str, Mapping[str, float]], ...] = (
    {},
    {"sparse-attention": {"density": 0.6, "context_density": 0.4}},
    {"sparse-attention": {"density": 0.45, "context_density": 0.3}, "step-cache": {"drift": 0.05}},
    {"sparse-attention": {}, "step-cache": {"drift": 0.1}},
    {"sparse-attention": {}, "step-cache": {}},
    {"sparse-attention": {}, "step-cache": {}, "fp8-linear": {}},
    {"sparse-attention": {}, "step-cache": {}, "fp8-linear": {}, "adaptive-context": {}},
)
"""Approximate passes of each setting with the options that they take; without options a pass has its own defaults.

Sparse attention comes first, since tiles that score lowest matter least; a bound on drift is checked in every step;
rounding to 8 bits is the same in all of them; context comes last, since what is dropped cannot be checked. On the
trained maze errors are 0.003, 0.014, 0.07 and 0.13 in the mean at drift 0.1, at the default, of rounding alone, and
with context.
"""

BEYOND: tuple[Mapping[str, Mapping[str, float]], ...] = tuple(
    {"sparse-attention": {}, "step-cache": {}, "fp8-linear": {}, "adaptive-context": {}, "context-reuse": {"age": age}}
    for age in (1, 4, 16)
)
"""Settings that presets do not reach by themselves: keys and values of context are kept for longer and longer."""


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        runs: the approximate passes that run, each with the options that it takes.
        without: those that are left out.
    """

    runs: tuple[tuple[str, tuple[tuple[str, float], ...]], ...] = ()
    without: tuple[str, ...] = ()

    @property
    def thresholds(self) -> dict[str, float]:
        """The options of the passes that run, by name."""
        return {option: value for _, options in self.runs for option, value in options}

    def among(self, passes: Container[str]) -> Setting:
        """What the setting amounts to where only ``passes`` find something to approximate."""
        return Setting(tuple((name, options) for name, options in self.runs if name in passes))

    def applied_to(self, options: LightintOptions) -> LightintOptions:
        """``options`` with this setting in place of their budget, which asks for whatever the setting approximates."""
        plain = dataclasses.replace(options, max_relative_error=None, min_psnr=None, without=())
        rest = dataclasses.replace(
            plain,
            approximate=bool(self.runs),
            also=_left_of(options.also, self.without),
            without=(*options.without, *self.without),
            require=tuple(name for name in options.require if name not in self.without),
        )
        handed_on = forwarded(type(options))
        takes = _taken(pipeline_of(dataclasses.replace(rest, **dict.fromkeys(handed_on))))  # type: ignore[arg-type]
        dropped = dict.fromkeys(name for name in handed_on if name not in takes)
        return dataclasses.replace(rest, **(self.thresholds | dropped))  # type: ignore[arg-type]

    def __str__(self) -> str:
        thresholds = ", ".join(f"{name} {value:g}" for name, value in self.thresholds.items())
        names = " + ".join(name for name, _ in self.runs)
        return f"{names} ({thresholds})" if thresholds else names or "exact"


def ladder_of(options: LightintOptions) -> tuple[Setting, ...]:
    """The settings of a budget from exact to what ``options`` run without one.

    A pipeline written out, a preset with constants of its own, and one with a pass that the settings do not know, is
    taken whole or not at all.

    Raises:
        OptionError: as of :func:`pipeline_of`.
    """
    from lightint_compile.passes.ir.remarks import Numerics

    whole = pipeline_of(dataclasses.replace(options, max_relative_error=None, min_psnr=None))
    names = [step.name for step in whole.passes if step.numerics is Numerics.APPROXIMATE]
    rows = (*LADDER, *(BEYOND if "context-reuse" in names else ()))
    unknown = set(names).difference(*LADDER, *BEYOND)
    if options.passes is not None or unknown or preset_of(options.preset).whole:
        rows = ({}, {name: {} for name in names})
    return tuple(dict.fromkeys(_setting(row, names) for row in rows))


def _setting(row: Mapping[str, Mapping[str, float]], names: list[str]) -> Setting:
    runs = tuple((name, tuple(row[name].items())) for name in names if name in row)
    return Setting(runs, tuple(name for name in names if name not in row))


def _left_of(text: str | None, without: Container[str]) -> str | None:
    """The passes that run besides the others, where some of them are left out."""
    if text is None:
        return None
    from lightint_compile.passes.pipeline import Pipeline

    kept = tuple(step for step in Pipeline.parse(text).passes if step.name not in without)
    return str(Pipeline(kept)) if kept else None


def _taken(pipeline: Pipeline) -> set[str]:
    return {field.name for step in pipeline.passes for field in dataclasses.fields(step)}
