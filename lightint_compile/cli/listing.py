"""The list of passes and presets, made from the code itself, and where those of other packages come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightint_compile.cli.extending import PASS, PRESET
from lightint_compile.errors import LightintError, one_line
from lightint_compile.options.presets import PRESETS, Preset
from lightint_compile.passes.base import Pass
from lightint_compile.passes.registry import PASSES, pass_class

OURS = "lightint"
"""Where what is built in comes from."""

NOTHING = "–"


def print_passes(console: Console | None = None) -> None:
    """Print every pass with its numerics class, options and defaults, and every preset with its passes."""
    console = console or Console()
    console.print(_table("passes, in the order they run", ("pass", "numerics", "options", "what it does"), _passes()))
    console.print(_table("presets", ("preset", "what it is for", "passes"), _presets()))


def _table(title: str, columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in (*columns, "from"):
        table.add_column(column, overflow="fold")
    for cells in rows:
        table.add_row(*map(escape, cells))
    return table


def _passes() -> Iterator[tuple[str, ...]]:
    for name in PASSES:
        yield _pass_row(name, pass_class(name), OURS)
    for each, kind in PASS.found():
        if isinstance(kind, LightintError):
            yield each.name, NOTHING, NOTHING, f"cannot be used: {one_line(kind)}", each.origin
        else:
            yield _pass_row(each.name, kind, each.origin)


def _presets() -> Iterator[tuple[str, ...]]:
    for name, preset in PRESETS.items():
        yield _preset_row(name, preset, OURS)
    for each, preset in PRESET.found():
        if isinstance(preset, LightintError):
            yield each.name, f"cannot be used: {one_line(preset)}", NOTHING, each.origin
        else:
            yield _preset_row(each.name, preset, each.origin)


def _pass_row(name: str, kind: type[Pass], origin: str) -> tuple[str, ...]:
    return name, str(kind.numerics), _options(kind), _summary(kind), origin


def _preset_row(name: str, preset: Preset, origin: str) -> tuple[str, ...]:
    return name, preset.summary, ", ".join(preset.passes) or NOTHING, origin


def _options(kind: type[Pass]) -> str:
    fields = dataclasses.fields(kind)
    return "\n".join(f"{field.name.replace('_', '-')}={field.default}" for field in fields) or NOTHING


def _summary(kind: type[Pass]) -> str:
    return (kind.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
