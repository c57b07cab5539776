"""Kept fractions that are stated of single sites, by module path or by a pattern of paths.

Which sites can do with little differs from model to model, and only a comparison with the truth says it. ``*`` stands
for any characters, dots included; a path in full goes before patterns, a longer pattern before a shorter one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from lightint_compile.errors import OptionError, nearest
from lightint_compile.passes.analysis.stated_inputs import is_pattern, precedence

Stated = tuple[tuple[str, float], ...]
"""Module paths or patterns, with the kept fraction of the visual key tiles of each."""


def stated_of(stated: Stated, path: str) -> float | None:
    """What is stated of the site at ``path``; ``None`` where nothing is."""
    entries = sorted(stated, key=lambda entry: precedence(entry[0]))
    return next((density for entry, density in reversed(entries) if _names(entry, path)), None)


def without_site(stated: Stated, paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Entries that name none of these sites, with a hint each."""
    for entry, _ in stated:
        if not any(_names(entry, path) for path in paths):
            near = nearest(entry, filter(None, paths))
            yield entry, f"did you mean {near!r}?" if near else "remarks of this pass name the module of each site"


def check(stated: Stated, where: str) -> None:
    """Look at each kept fraction.

    Raises:
        OptionError: one that is no fraction.
    """
    for entry, density in stated:
        if not 0 < density <= 1:
            why = f"got {density:g} for {entry}"
            fix = f"for example {entry}:0.3; 1 leaves it dense"
            raise OptionError("site_density holds kept fractions in (0, 1]", where=where, why=why, fix=fix)


def _names(entry: str, path: str) -> bool:
    return fnmatchcase(path, entry) if is_pattern(entry) else path == entry
