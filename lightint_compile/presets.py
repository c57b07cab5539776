"""Presets: the one table from a preset's name to the passes it runs.

A preset is on offer when every pass of its row exists; a new one is one new row.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightint_compile.errors import OptionError

if TYPE_CHECKING:
    from lightint_compile.options import LightintOptions
    from lightint_compile.passes.base import Pass
    from lightint_compile.passes.pipeline import Pipeline


@dataclass(frozen=True)
class Preset:
    """One row: what it is for, its passes in order, and the passes a user names by choosing it.

    ``asked`` are the passes whose absence of any match is worth a warning: the reason to choose this preset.
    """

    summary: str
    passes: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()


_EXACT = ("canonicalize-attention", "sink-row-repeats", "hoist-invariants", "dead-tail")

PRESETS: dict[str, Preset] = {
    "off": Preset("Inductor as it is: the graph is not touched"),
    "exact": Preset("only rewrites that keep the mathematics; the default", (*_EXACT, "outline-regions")),
    "sparse": Preset(
        "exact, and block-sparse attention over the token grid: approximate",
        (*_EXACT, "sparse-attention", "outline-regions"),
        asked=("sparse-attention",),
    ),
}

FORWARDED = ("density", "context_density", "coverage", "min_tokens", "tile")
"""Options that belong to whichever passes of the pipeline have a field of the same name."""


def pipeline_of(options: LightintOptions) -> Pipeline:
    """The passes that these options run, with the options that passes take handed on.

    Raises:
        OptionError: an option that no pass of the pipeline takes, or a required pass that the pipeline lacks.
    """
    from lightint_compile.passes.pipeline import Pipeline

    text = ",".join(PRESETS[options.preset].passes) if options.passes is None else options.passes
    passes = Pipeline.parse(text).passes
    _check_required(options, passes)
    return Pipeline(_forward(options, passes))


def asked_passes(options: LightintOptions) -> tuple[str, ...]:
    """Passes that the user named, by writing them or by choosing a preset for their sake."""
    if options.passes is None:
        return PRESETS[options.preset].asked
    return tuple(step.name for step in pipeline_of(options).passes)


def _check_required(options: LightintOptions, passes: tuple[Pass, ...]) -> None:
    for name in options.require:
        if name not in {step.name for step in passes}:
            raise OptionError(
                f"the required pass {name!r} is not part of the pipeline",
                where="options['require']",
                why=f"the pipeline is {','.join(step.name for step in passes) or 'empty'}",
                fix=f"choose a preset that runs {name}, or name it in options['passes']",
            )


def _forward(options: LightintOptions, passes: tuple[Pass, ...]) -> tuple[Pass, ...]:
    for option in FORWARDED:
        value = getattr(options, option)
        if value is None:
            continue
        takers = {step.name for step in passes if option in {field.name for field in dataclasses.fields(step)}}
        if not takers:
            raise OptionError(
                f"no pass of the pipeline takes the option {option!r}",
                where=f"options[{option!r}]",
                why=f"the pipeline is {','.join(step.name for step in passes) or 'empty'}",
                fix='choose the preset "sparse", or leave the option out',
            )
        passes = tuple(
            dataclasses.replace(step, **{option: value}) if step.name in takers else step  # type: ignore[arg-type]
            for step in passes
        )
    return passes
