"""Presets: the one table from a preset's name to the passes it runs.

A preset is on offer when every pass of its row exists; a new one is one new row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
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
    ``settings`` are options of passes, by the pass's name, as a pipeline text writes them.
    """

    summary: str
    passes: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The row as a pipeline text."""
        return ",".join(f"{name}{{{self.settings[name]}}}" if name in self.settings else name for name in self.passes)


_EXACT = ("canonicalize-attention", "sink-row-repeats", "hoist-invariants", "dead-tail")
_ALL = (*_EXACT, "adaptive-context", "sparse-attention", "outline-regions", "step-cache")
_KEEPING = (*_EXACT, "adaptive-context", "context-reuse", "sparse-attention", "outline-regions", "step-cache")
_NO_AGE = {"context-reuse": "age=0"}

PRESETS: dict[str, Preset] = {
    "off": Preset("Inductor as it is: the graph is not touched"),
    "exact": Preset("only rewrites that keep the mathematics", (*_EXACT, "outline-regions")),
    "sparse": Preset(
        "exact, and block-sparse attention over the token grid: approximate",
        (*_EXACT, "sparse-attention", "outline-regions"),
        asked=("sparse-attention",),
    ),
    "context": Preset(
        "exact, and context frames chosen by where the camera goes: approximate",
        (*_EXACT, "adaptive-context", "context-reuse", "outline-regions"),
        asked=("adaptive-context",),
        settings=_NO_AGE,
    ),
    "cache": Preset(
        "exact, and denoising steps reused where the camera returns: approximate",
        (*_EXACT, "outline-regions", "step-cache"),
        asked=("step-cache",),
    ),
    "all": Preset(
        "the default: sparse, context and cache together, approximate, where cameras or a trajectory say what matters; "
        "exact for any other model",
        _KEEPING,
        settings=_NO_AGE,
    ),
    "published": Preset(
        "all, by the rules and constants of the Light Interaction release: the baseline of comparisons",
        _ALL,
        asked=("adaptive-context", "sparse-attention", "step-cache"),
        settings={
            "adaptive-context": "rules=published",
            "sparse-attention": "density=0.3,context-density=0.175,keep-current=true,skipped-means=0,skip-first=1",
            "step-cache": "rules=published,strategy=hold,drift=none",
        },
    ),
}

FORWARDED = ("density", "context_density", "coverage", "min_tokens", "tile", "overlap", "drift", "age", "kept_frames")
"""Options that belong to whichever passes of the pipeline have a field of the same name."""


def pipeline_of(options: LightintOptions) -> Pipeline:
    """The passes that these options run, with the options that passes take handed on.

    A budget that is to be calibrated runs what keeps the mathematics, as an exact one does.

    Raises:
        OptionError: an option that no pass of the pipeline takes, or a required pass that the pipeline lacks.
    """
    from lightint_compile.passes.pipeline import Pipeline
    from lightint_compile.passes.remarks import Numerics

    if options.budget is not None and not options.budget.is_exact:
        from lightint_compile.budget.ladder import ladder_of

        return pipeline_of(ladder_of(options)[0].applied_to(options))
    passes = Pipeline.parse(str(PRESETS[options.preset]) if options.passes is None else options.passes).passes
    passes = tuple(step for step in passes if step.name not in options.without)
    if options.budget is not None:
        passes = tuple(step for step in passes if step.numerics is not Numerics.APPROXIMATE)
    _check_required(options, passes)
    return Pipeline(_forward(options, passes))


def asked_passes(options: LightintOptions) -> tuple[str, ...]:
    """Passes that the user named, by writing them or by choosing a preset for their sake."""
    if options.passes is None:
        return tuple(name for name in PRESETS[options.preset].asked if name not in options.without)
    return tuple(step.name for step in pipeline_of(options).passes)


NEEDS_NO_TRAJECTORY = {"sparse-attention": "sparse"}
"""Approximate passes that act without cameras as well, and the preset that asks for each."""


def unasked_passes(options: LightintOptions) -> tuple[str, ...]:
    """Approximate passes that nobody asked for: the preset ``all`` runs them where a trajectory says what matters.

    Asked for are passes of another preset or of a pipeline written out, passes that are required or that an option was
    given for, and all of them under a budget and with ``approximate``.
    """
    from lightint_compile.passes.remarks import Numerics

    if options.passes is not None or options.preset != "all" or options.approximate or options.budget is not None:
        return ()
    given = {option for option in FORWARDED if getattr(options, option) is not None}
    return tuple(
        step.name
        for step in pipeline_of(options).passes
        if step.numerics is Numerics.APPROXIMATE
        and step.name not in options.require
        and not given.intersection(each.name for each in dataclasses.fields(step))
    )


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
        takers = {step.name for step in passes if any(option == each.name for each in dataclasses.fields(step))}
        if not takers:
            raise OptionError(
                f"no pass of the pipeline takes the option {option!r}",
                where=f"options[{option!r}]",
                why=f"the pipeline is {','.join(step.name for step in passes) or 'empty'}",
                fix='choose the preset "all", or leave the option out',
            )
        passes = tuple(
            dataclasses.replace(step, **{option: value}) if step.name in takers else step  # type: ignore[arg-type]
            for step in passes
        )
    return passes
