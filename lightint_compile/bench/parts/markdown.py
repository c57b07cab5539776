"""Tables as Markdown: those that commands print, and those of the page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rich.table import Table

_MEANS_SOMETHING = re.compile(r"([\\`*<|])")


def escaped(text: str) -> str:
    """Text in one line in which no character means anything to Markdown."""
    return _MEANS_SOMETHING.sub(r"\\\1", " ".join(text.split()))


def printed(table: Table) -> str:
    """A table as a command prints it, its title above it."""
    head = [str(column.header) for column in table.columns]
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    right = [column.justify == "right" for column in table.columns]
    title = escaped(str(table.title))
    return f"{title[:1].upper()}{title[1:]}:\n\n{made(head, zip(*cells, strict=True), right)}"


def made(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[bool] = ()) -> str:
    """A table of plain texts; ``right`` says which columns are numbers."""
    aligned = ["---:" if number else "---" for number in right] or ["---"] * len(head)
    return "\n".join([_row(head), f"|{'|'.join(aligned)}|", *map(_row, rows)])


def _row(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in map(escaped, cells))
