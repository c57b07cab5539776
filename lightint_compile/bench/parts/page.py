"""The page of measurements: on what, tables and pictures of each part, cold starts, and what was not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightint_compile.bench.about import MACHINE, now
from lightint_compile.bench.parts.kept import Folder, Run
from lightint_compile.bench.parts.listed import APART, PAGE, Command, Kind, Part
from lightint_compile.bench.parts.markdown import escaped, made
from lightint_compile.bench.parts.picture import PICTURES, SUFFIX, draw
from lightint_compile.bench.parts.sections import Section, section


@dataclass(frozen=True)
class Outcome:
    """What became of a part.

    Attributes:
        run: its last run; nothing where there is none with this command, device and versions.
        missing: why there is none.
    """

    part: Part
    command: Command
    run: Run | None = None
    missing: str = ""

    @property
    def reason(self) -> str:
        """Why a run did not come to its end; empty where it did, and where there was none."""
        return self.run.reason if self.run else ""


@dataclass(frozen=True)
class Shown:
    """A part that was run, with what the page says of it."""

    outcome: Outcome
    section: Section
    pictures: Sequence[str]
    tables: str = ""

    @property
    def failed(self) -> bool:
        """Whether it was stopped, or one of its rows has no figures."""
        return bool(self.outcome.reason or self.section.failed)


def write_page(folder: Folder, outcomes: Sequence[Outcome], machine: Mapping[str, Any]) -> list[Shown]:
    """Write the page and its pictures; the parts that are on it."""
    shown = [_shown(folder, outcome) for outcome in outcomes if outcome.run]
    blocks = [
        "# Measurements",
        f"Written by `lightint bench all`, {now()}. Every part says by which command its figures were measured.",
        made(("", ""), [(name, str(machine[name] or "none")) for name in MACHINE]),
        "## Parts",
        made(("part", "seconds", "ended", "outcome"), map(_row, shown), (False, True, False, False)),
        *(block for each in shown for block in _part(folder, each)),
        *_cold(shown),
        "## What was not run",
        "\n".join(_not_run(outcomes)),
    ]
    text = "\n\n".join(block.strip("\n") for block in blocks) + "\n"
    (folder.path / PAGE).write_text(text, encoding="utf-8")
    return shown


def _shown(folder: Folder, outcome: Outcome) -> Shown:
    part, figures = outcome.part, folder.figures(outcome.part)
    if figures is None:
        return Shown(outcome, Section(), ())
    picture = folder.file(part, SUFFIX)
    draw(part.kind, figures, picture)
    tables = folder.file(part, ".md")
    said = tables.read_text(encoding="utf-8") if part.kind is Kind.EVALUATION and tables.exists() else ""
    return Shown(outcome, section(part.kind, figures), (picture.name,) if picture.exists() else (), said)


def _row(shown: Shown) -> tuple[str, ...]:
    run = shown.outcome.run
    assert run is not None
    said = [f"failed: {run.reason}"] if run.reason else []
    said += [f"{what} failed: {why}" for what, why in shown.section.failed]
    return shown.outcome.part.name, f"{run.seconds:.0f}", run.date, "; ".join(said) or "measured"


def _part(folder: Folder, shown: Shown) -> list[str]:
    part, run = shown.outcome.part, shown.outcome.run
    assert run is not None
    blocks = [f"## {part.title}", part.says]
    blocks.append(f"```\n{folder.shown(part, shown.outcome.command)}\n```")
    took = f"{run.seconds:.0f} seconds, all processes and cold starts included; ended {run.date}."
    blocks.append(took if not run.reason else f"{took} It did not come to its end: {escaped(run.reason)}")
    blocks += [f"{escaped(what)} has no figures: {escaped(why)}" for what, why in shown.section.failed]
    blocks += [*shown.section.blocks, *filter(None, [shown.tables])]
    blocks += [f"![{PICTURES[part.kind]}]({name})" for name in shown.pictures]
    return blocks


def _cold(shown: Sequence[Shown]) -> list[str]:
    """One table of all cold starts: they are in no other time of the page but the seconds of a part."""
    rows = [(each.outcome.part.name, what, f"{seconds:.2f}") for each in shown for what, seconds in each.section.cold]
    if not rows:
        return []
    says = (
        "Seconds until a variant was ready: capture, rewriting, compiling and first calls, with caches that were empty "
        "when the part began (`lightint warm` finds what `lightint cold` left). Variants of a rollout get ready side "
        "by side, so their seconds are those of a busy machine. Tables of steady times leave them out."
    )
    return ["## Cold start", says, made(("part", "variant", "seconds"), rows, (False, False, True))]


def _not_run(outcomes: Sequence[Outcome]) -> list[str]:
    parts = [f"* {each.part.name}: {escaped(each.missing)}" for each in outcomes if each.run is None]
    return [*parts, *(f"* `{name}`, which is no part: {why}" for name, why in APART.items())]


def path_of(folder: Folder) -> Path:
    """Where the page is."""
    return folder.path / PAGE
