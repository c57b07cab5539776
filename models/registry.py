"""Model families by name: those built in, and those of other packages, which register them as entry points.

A model is named `family:size`, or `family` where there is one size. Another package's pyproject.toml:

    [project.entry-points."lightint.models"]
    toy = "my_package.toy:FAMILY"
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

from lightint_compile.entry_points import Extension, extension, extensions, names, refusal
from lightint_compile.errors import ExtensionError, InputError, did_you_mean

if TYPE_CHECKING:
    from lightint_compile.models.world_model import ModelFamily, WorldModel

#: Family name to ``module:attribute`` of its :class:`~.world_model.ModelFamily`.
FAMILIES: dict[str, str] = {
    "worldplay": "worldplay.world_model:FAMILY",
    "matrix-game": "matrix_game.world_model:FAMILY",
    "maze": "maze.world_model:FAMILY",
}

GROUP = "lightint.models"
"""Entry points of other packages: the family's name, and ``module:attribute`` of a ``ModelFamily``."""

TINY, DEMO, LARGE = "worldplay:tiny", "worldplay:demo", "worldplay:8b-480p"
"""Models that commands use where none is named."""

TRUE, SCENES = "maze:base", "mazes"
"""The model that is judged where none is named, as every pose of its scenes can be rendered; and what they are called.
"""


def is_family(name: str) -> bool:
    """Whether there is a family of this name.

    Raises:
        ExtensionError: two packages register it.
    """
    return name in FAMILIES or extension(GROUP, name, FAMILIES) is not None


def family(name: str) -> ModelFamily:
    """The family called ``name``.

    Raises:
        InputError: there is none; with a hint.
        ExtensionError: another package registers it, and it cannot be imported or is no family.
    """
    if name in FAMILIES:
        module, _, attribute = FAMILIES[name].partition(":")
        found: ModelFamily = getattr(importlib.import_module(f"lightint_compile.models.{module}"), attribute)
        return found
    return _of_another_package(name)


@functools.cache
def _of_another_package(name: str) -> ModelFamily:
    found = extension(GROUP, name, FAMILIES)
    if found is None:
        fix = did_you_mean(name, names(GROUP, FAMILIES))
        raise InputError(f"there is no model family {name!r}", where="model", fix=fix)
    return checked(found)


def checked(found: Extension) -> ModelFamily:
    """The family that an entry point names.

    Raises:
        ExtensionError: it cannot be imported or is no family.
    """
    from lightint_compile.models.world_model import ModelFamily

    made: Any = found.load()
    if not isinstance(made, ModelFamily) or not made.sizes:
        raise found.error("this is no model family", f"it is a {type(made).__name__}, or it has no sizes")
    return made


def world_model(target: str) -> WorldModel:
    """The model called ``family:size``, or ``family`` where there is one size.

    Raises:
        InputError: there is no such family or size, or a size has to be chosen; with a hint.
        ExtensionError: another package registers the family, and what it makes is no world model.
    """
    from lightint_compile.models.world_model import WorldModel

    name, colon, size = target.partition(":")
    sizes = family(name).sizes
    if not colon and len(sizes) == 1:
        size = next(iter(sizes))
    if size not in sizes:
        what = f"{name} has no size {size!r}" if colon else f"{name} has several sizes"
        fix = did_you_mean(f"{name}:{size}", [f"{name}:{each}" for each in sizes])
        raise InputError(what, where=target, fix=fix)
    made: Any = sizes[size]()
    if not isinstance(made, WorldModel):
        missing = [each for each in _members(WorldModel) if not hasattr(made, each)]
        what, where = f"{target} is no world model", f"the family {name}"
        raise ExtensionError(what, where=where, why=f"{type(made).__name__} has no {', '.join(missing)}")
    return made


def _members(protocol: type) -> list[str]:
    return [name for name in vars(protocol) if not name.startswith("_")]


def model_names() -> list[str]:
    """Every ``family:size`` that can be used; a family that cannot be imported is left out."""
    usable = [each.name for each in extensions(GROUP) if refusal(each, FAMILIES) is None]
    found: list[str] = []
    for name in (*FAMILIES, *usable):
        try:
            found.extend(f"{name}:{size}" for size in family(name).sizes)
        except ExtensionError:
            continue
    return found
