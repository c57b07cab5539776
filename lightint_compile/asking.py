"""Nothing approximates unasked: what counts as asking, what is offered otherwise, and the warning where it happens.

A trajectory asks: cameras say which frames and tokens matter, and the published rules were made for it. A plain
text-to-video transformer has none, so the preset ``all`` is ``exact`` there, and a remark offers what it left out.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

from lightint_compile.options import LightintOptions
from lightint_compile.options.pipelines import NEEDS_NO_TRAJECTORY, unasked_passes
from lightint_compile.passes.analysis.roles import Role, Roles
from lightint_compile.passes.base import Pass
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remarks import Numerics, Remark, RemarkKind
from lightint_compile.runtime.underway import rollout_is_underway
from lightint_compile.trace_parts import Frame

log = logging.getLogger(__name__)

UNASKED, APPROXIMATE, WHERE = "unasked", "approximate", "rollout"
"""Rules of the remarks that are made here."""


def depends_on_rollout(options: LightintOptions) -> bool | None:
    """Whether a rollout is under way in this thread; ``None`` where ``options`` ask for the same outside of one."""
    return rollout_is_underway() if unasked_passes(options) else None


def asked_inside(options: LightintOptions, inside: bool | None) -> LightintOptions:
    """``options``, which approximate inside of a rollout: its cameras are the trajectory."""
    return options if inside is None else dataclasses.replace(options, approximate=inside)


def in_rollout(options: LightintOptions) -> LightintOptions:
    """What ``options`` ask for where this thread is."""
    return asked_inside(options, depends_on_rollout(options))


def differs_inside(remarks: Iterable[Remark]) -> bool:
    """Whether a graph with these remarks is another one inside of a rollout than outside, where options allow it."""
    return any(r.rule == UNASKED or (r.rule == APPROXIMATE and not r.args["guided"]) for r in remarks)


def is_guided(program: Program) -> bool:
    """Whether the program reads a camera, stated or inferred."""
    if Role.CAMERA in program.roles.values():
        return True
    try:
        return bool(program.fact(Roles).paths(Role.CAMERA))
    except Exception:
        log.debug("the roles of %s cannot be told", program.name, exc_info=True)
        return False


def told_where(inside: bool) -> Remark:
    """What the report says of a graph that is another one inside of a rollout than outside."""
    place, other = ("inside", "outside of it runs exactly") if inside else ("outside", "inside of one may approximate")
    message = f"runs {place} of rollouts: the same graph {other}"
    return Remark(kind=RemarkKind.ANALYSIS, pass_name="presets", rule=WHERE, message=message)


def due_after(step: Pass | None, passes: Sequence[Pass], unasked: Container[str]) -> list[Pass]:
    """The passes left out that would have run right after ``step`` (first of all for ``None``)."""
    rest = iter(passes)
    if step is not None:
        next(each for each in rest if each.name == step.name)
    due = []
    for each in rest:
        if each.name not in unasked:
            break
        due.append(each)
    return due


def offers(passes: Iterable[Pass], program: Program, work: int) -> list[Remark]:
    """What ``passes`` would save in ``program`` as it is now (``work`` FLOPs), tried on copies."""
    tried = [_offer(step, program, work) for step in passes if step.name in NEEDS_NO_TRAJECTORY]
    return [remark for remark in tried if remark is not None]


def _offer(step: Pass, program: Program, work: int) -> Remark | None:
    try:
        applied = [r for r in step.run(program.snapshot()).remarks if r.kind is RemarkKind.APPLIED]
    except Exception:
        log.debug("%s cannot be offered", step.name, exc_info=True)
        return None
    saved = sum(r.count * ((r.flops_before or 0) - (r.flops_after or 0)) for r in applied)
    if not applied or saved <= 0:
        return None
    places = sum(r.count for r in applied)
    return Remark(
        kind=RemarkKind.ANALYSIS,
        pass_name=step.name,
        rule=UNASKED,
        message=f"left out: it would save {100 * saved / max(work, 1):.0f} % of the work in {places} places, but it "
        "approximates, and a model without cameras or a trajectory does not say how far",
        hint=f'ask for it with options={{"preset": "{NEEDS_NO_TRAJECTORY[step.name]}"}}, or bound it with '
        'options={"max_relative_error": 0.05} and lightint_compile.calibrate',
        args={"places": places},
        flops_before=work,
        flops_after=work - saved,
    )


def approximations(remarks: Iterable[Remark], options: LightintOptions, guided: bool) -> list[Remark]:
    """The remark that results are approximate, where cameras ask for it or ``options``.

    There is none under a budget, which bounds them already.

    Args:
        guided: whether the program reads a camera.
    """
    applied = [r for r in remarks if r.kind is RemarkKind.APPLIED and r.numerics is Numerics.APPROXIMATE]
    names = list(dict.fromkeys(remark.pass_name for remark in applied))
    if not names or not (guided or options.approximate) or options.budget is not None:
        return []
    return [
        Remark(
            kind=RemarkKind.ANALYSIS,
            pass_name="presets",
            rule=APPROXIMATE,
            message=f"results are approximate, by {_listed(names)}",
            hint='options={"preset": "exact"} turns it off; options={"max_relative_error": 0.05} with '
            "lightint_compile.calibrate bounds it",
            args={"passes": names, "guided": guided},
        )
    ]


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def options_asked(frame: Frame, backend: Callable[..., Any]) -> LightintOptions | None:
    """The options with which a call asks ``backend``; ``None`` where it asks another one.

    Raises:
        OptionError: they cannot be taken.
    """
    named = getattr(frame.backend, "kwargs", None)
    if getattr(frame.backend, "compiler_fn", None) is not backend or not isinstance(named, dict):
        return None
    given = named.get("options")
    return given if isinstance(given, LightintOptions) else LightintOptions.from_mapping(given)
