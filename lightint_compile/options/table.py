"""The table of options: what is known of one besides its type stands at its field, and everything else is made from it.

Checks, the dictionary form, hints on misspelt names, what goes to passes, what a budget sets, the how-to's table and
the command line's list all read these rows. To add an option, add one field to
:class:`~lightint_compile.options.values.LightintOptions`; the pass that reads it has a field of the same name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

Check: TypeAlias = Callable[[str, Any], Any]
"""Takes an option's name and what a user gave; gives the value as it is kept, or raises
:class:`~lightint_compile.errors.OptionError`."""

Kind = TypeVar("Kind", bound=type[Any])

_ROW = "lightint option"


@dataclass(frozen=True)
class Option:
    """One row.

    Attributes:
        name: how it is spelt.
        default: what holds where nothing is said.
        check: brings a value into the form in which it is kept.
        values: what it takes, with the unit, in Markdown.
        help: what it means, in Markdown.
        to_passes: whether it belongs to whichever passes of the pipeline have a field of its name; ``None`` leaves it
            to them.
        asks: whether giving it asks for the approximate passes that take it.
        threshold: whether it says how far to approximate: a budget sets it, so that both do not go together.
        plain: makes plain data of a value, which ``check`` takes back.
    """

    name: str
    default: Any
    check: Check
    values: str
    help: str
    to_passes: bool = False
    asks: bool = True
    threshold: bool = False
    plain: Callable[[Any], Any] | None = None


def option(default: Any, check: Check, **row: Any) -> Any:
    """A dataclass field that is a row of the table; ``row`` are the further attributes of :class:`Option`."""
    return dataclasses.field(default=default, metadata={_ROW: {"check": check, **row}})


def table_of(kind: type[Any]) -> tuple[Option, ...]:
    """The rows of a dataclass of options, in order."""
    return tuple(
        Option(field.name, field.default, **field.metadata[_ROW])
        for field in dataclasses.fields(kind)
        if _ROW in field.metadata
    )


def names_of(kind: type[Any], keep: Callable[[Option], bool]) -> tuple[str, ...]:
    """The names of the rows that ``keep`` takes."""
    return tuple(row.name for row in table_of(kind) if keep(row))


def markdown(kind: type[Any]) -> str:
    """The table as the how-to prints it."""
    rows = [f"| `{row.name}` | {row.values} | {row.help} |" for row in table_of(kind)]
    return "\n".join(["| option | values | meaning |", "|---|---|---|", *rows])


def with_attributes(kind: Kind) -> Kind:
    """Add the rows to a class's docstring, for ``help()``."""
    rows = (f"        {row.name} ({row.values}): {row.help}." for row in table_of(kind))
    if kind.__doc__ is not None:
        kind.__doc__ += "\n".join(["\n    Attributes:", *rows, ""])
    return kind
