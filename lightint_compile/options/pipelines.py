"""From options to passes: what a preset or a pipeline text runs, and which of it was asked for."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lightint_compile.errors import OptionError
from lightint_compile.options.presets import preset_of
from lightint_compile.options.table import names_of
from lightint_compile.options.values import LightintOptions, forwarded

if TYPE_CHECKING:
    from lightint_compile.passes.base import Pass
    from lightint_compile.passes.pipeline import Pipeline


def pipeline_of(options: LightintOptions) -> Pipeline:
    """The passes that these options run, with the options that passes take handed on.

    A budget that is to be calibrated runs what keeps the mathematics, as an exact one does.

    Raises:
        OptionError: an option that no pass of the pipeline takes, or a required pass that the pipeline lacks.
    """
    from lightint_compile.passes.pipeline import Pipeline

    text = str(preset_of(options.preset)) if options.passes is None else options.passes
    passes = _shared(options, Pipeline.parse(text).passes)
    passes = _joined(passes, Pipeline.parse(options.also or "").passes)
    passes = tuple(step for step in passes if step.name not in options.without)
    if options.budget is not None and options.budget.is_exact:
        passes = _exact(passes)
    _check_required(options, passes)
    passes = _forward(options, passes)
    return Pipeline(passes if options.budget is None else _exact(passes))


SHARD = "shard-sequence"
"""The pass that shares the work of a call among processes; no preset names it, and asking for processes runs it."""

_BEHIND = ("split-linears", "outline-regions", "step-cache")
"""Passes that run on what a rank computes."""


def _shared(options: LightintOptions, passes: tuple[Pass, ...]) -> tuple[Pass, ...]:
    names = [step.name for step in passes]
    if (options.gpus is None and options.mesh is None) or SHARD in names:
        return passes
    from lightint_compile.passes.registry import pass_class

    place = next((names.index(name) for name in _BEHIND if name in names), len(names))
    return (*passes[:place], pass_class(SHARD)(), *passes[place:])


def _joined(passes: tuple[Pass, ...], more: tuple[Pass, ...]) -> tuple[Pass, ...]:
    """``passes`` with ``more``, each in front of what pipelines normally run behind it; one that is there is replaced.

    A pass of another package has no usual place, and runs in front of what outlines.
    """
    from lightint_compile.passes.registry import PASSES

    order = list(PASSES)
    for step in more:
        if step.name in {each.name for each in passes}:
            passes = tuple(step if each.name == step.name else each for each in passes)
            continue
        behind = order[order.index(step.name if step.name in order else SHARD) + 1 :]
        place = next((place for place, each in enumerate(passes) if each.name in behind), len(passes))
        passes = (*passes[:place], step, *passes[place:])
    return passes


def _exact(passes: tuple[Pass, ...]) -> tuple[Pass, ...]:
    from lightint_compile.passes.ir.remarks import Numerics

    return tuple(step for step in passes if step.numerics is not Numerics.APPROXIMATE)


def asked_passes(options: LightintOptions) -> tuple[str, ...]:
    """Passes that the user named, by writing them or by choosing a preset for their sake."""
    if options.passes is None:
        named = (*preset_of(options.preset).asked, *_names(options.also))
        return tuple(name for name in dict.fromkeys(named) if name not in options.without)
    return tuple(step.name for step in pipeline_of(options).passes)


def _names(text: str | None) -> tuple[str, ...]:
    from lightint_compile.passes.pipeline import Pipeline

    return tuple(step.name for step in Pipeline.parse(text or "").passes)


NEEDS_NO_TRAJECTORY = {"sparse-attention": "sparse"}
"""Approximate passes that act without cameras as well, and the preset that asks for each."""


def unasked_passes(options: LightintOptions) -> tuple[str, ...]:
    """Approximate passes that nobody asked for: the preset ``all`` runs them where a trajectory says what matters.

    Asked for are passes of another preset or of a pipeline written out, passes that are required, that run besides the
    preset's or that an option was given for, and all of them under a budget and with ``approximate``.
    """
    from lightint_compile.passes.ir.remarks import Numerics

    if options.passes is not None or options.preset != "all" or options.approximate or options.budget is not None:
        return ()
    asking = names_of(type(options), lambda row: row.to_passes and row.asks)
    given = {option for option in asking if getattr(options, option) is not None}
    return tuple(
        step.name
        for step in pipeline_of(options).passes
        if step.numerics is Numerics.APPROXIMATE
        and step.name not in (*options.require, *_names(options.also))
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
    for option in forwarded(type(options)):
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
