"""The list of options, made from their table."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightint_compile.options import LightintOptions
from lightint_compile.options.table import markdown, table_of


def print_options(as_markdown: bool, console: Console | None = None) -> None:
    """Print every option with what it takes and means; ``as_markdown`` as the how-to has it."""
    if as_markdown:
        typer.echo(markdown(LightintOptions))
        return
    table = Table(title="options", title_justify="left")
    for column in ("option", "values", "meaning"):
        table.add_column(column, overflow="fold")
    for row in table_of(LightintOptions):
        table.add_row(row.name, *(escape(text.replace("`", "")) for text in (row.values, row.help)))
    (console or Console()).print(table)
