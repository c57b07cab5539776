"""The list of passes and presets, made from the code itself."""

from __future__ import annotations

import dataclasses

from rich.console import Console
from rich.table import Table

from lightint_compile.options.presets import PRESETS
from lightint_compile.passes.base import Pass
from lightint_compile.passes.registry import PASSES, pass_class


def print_passes(console: Console | None = None) -> None:
    """Print every pass with its numerics class, options and defaults, and every preset with its passes."""
    console = console or Console()
    table = Table(title="passes, in the order they run", title_justify="left")
    for column in ("pass", "numerics", "options", "what it does"):
        table.add_column(column, overflow="fold")
    for name in PASSES:
        kind = pass_class(name)
        table.add_row(name, str(kind.numerics), _options(kind), _summary(kind))
    console.print(table)
    presets = Table(title="presets", title_justify="left")
    for column in ("preset", "what it is for", "passes"):
        presets.add_column(column, overflow="fold")
    for name, preset in PRESETS.items():
        presets.add_row(name, preset.summary, ", ".join(preset.passes) or "–")
    console.print(presets)


def _options(kind: type[Pass]) -> str:
    fields = dataclasses.fields(kind)
    return "\n".join(f"{field.name.replace('_', '-')}={field.default}" for field in fields) or "–"


def _summary(kind: type[Pass]) -> str:
    return (kind.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
