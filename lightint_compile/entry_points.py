"""What other packages add: passes, presets and model families that they register as entry points.

An entry point is a line in a package's metadata: a group, a name, and ``module:attribute``. Nothing is looked for while
built-in names are enough, and nothing is imported before it is named: a package that is broken hurts only who names it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any

from lightint_compile.errors import ExtensionError, one_line, told

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Extension:
    """One entry point of another package.

    Attributes:
        name: what it is called in options and on the command line.
        value: ``module:attribute``, where it is.
        package: the name and version of the package that registers it.
    """

    group: str
    name: str
    value: str
    package: str

    @property
    def origin(self) -> str:
        """Where it comes from, for people."""
        return f"{self.package} ({self.value})"

    def load(self) -> Any:
        """The object itself.

        Raises:
            ExtensionError: it cannot be imported, or its module has no such attribute.
        """
        try:
            return importlib.metadata.EntryPoint(self.name, self.value, self.group).load()
        except (Exception, SystemExit) as error:
            raise self.error("it cannot be imported", told(error)) from error

    def error(self, what: str, why: str) -> ExtensionError:
        """An error that says whose fault it is."""
        fix = f"mend or remove the package {self.package}"
        return ExtensionError(f"{self.name!r}: {what}", where=f"{self.group}, {self.origin}", why=why, fix=fix)


def extensions(group: str) -> list[Extension]:
    """All entry points of a group, by name; each once, as a folder may stand on the path twice."""
    found = {
        Extension(group, entry.name, entry.value, _package(entry))
        for entry in importlib.metadata.entry_points(group=group)
    }
    return sorted(found, key=lambda each: (each.name, each.package, each.value))


def names(group: str, built_in: Iterable[str]) -> list[str]:
    """Every name of a group that can be used: the built-in ones in their order, then those of other packages."""
    own = list(built_in)
    return own + sorted({each.name for each in extensions(group)} - {*own})


def extension(group: str, name: str, built_in: Container[str]) -> Extension | None:
    """What is registered under ``name``, which is not built in; ``None`` when nothing is.

    An extension that takes a name of ``built_in`` is found on the way and warned of.

    Raises:
        ExtensionError: two packages register the name.
    """
    everything = extensions(group)
    for each in everything:
        if each.name in built_in:
            _warn_of_taken(each)
    found = [each for each in everything if each.name == name]
    if len(found) > 1:
        raise found[0].error("two packages register this name", " and ".join(each.origin for each in found))
    return found[0] if found else None


def refusal(each: Extension, built_in: Container[str]) -> ExtensionError | None:
    """Why an extension cannot be used, as far as that is known without loading it."""
    if each.name in built_in:
        return _taken(each)
    try:
        extension(each.group, each.name, built_in)
    except ExtensionError as error:
        return error
    return None


def _taken(each: Extension) -> ExtensionError:
    return each.error("the name is built in", "lightint has one of this name, which is used")


@functools.cache
def _warn_of_taken(each: Extension) -> None:
    """Once in a process."""
    log.warning("%s", one_line(_taken(each)))


def _package(entry: importlib.metadata.EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "an unnamed package"
