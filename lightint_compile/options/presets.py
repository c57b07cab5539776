"""Presets: the one table from a preset's name to the passes it runs, and those that other packages register.

A preset is on offer when every pass of its row exists; a new one is one new row. Another package writes a
:class:`Preset` and names it in its pyproject.toml, most often a built-in one with a pass of its own in it:

    MODULATED = PRESETS["exact"].running("fuse-modulation", after="hoist-invariants", summary="exact, and ...")

    [project.entry-points."lightint.presets"]
    modulated = "my_package.fuse_modulation:MODULATED"
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lightint_compile.entry_points import Extension, extension, names
from lightint_compile.errors import OptionError, did_you_mean, told

DEFAULT_PRESET = "all"


@dataclass(frozen=True)
class Preset:
    """One row: what it is for, its passes in order, and the passes a user names by choosing it.

    ``asked`` are the passes whose absence of any match is worth a warning: the reason to choose this preset.
    ``settings`` are options of passes, by the pass's name, as a pipeline text writes them. ``whole`` says that its
    approximate passes belong together with their settings: an error budget runs all of them or none.
    """

    summary: str
    passes: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    whole: bool = False

    def running(self, name: str, *, after: str, summary: str) -> Preset:
        """This preset with the pass ``name`` behind the pass ``after``; choosing it asks for that pass.

        Raises:
            OptionError: ``after`` is not part of the preset.
        """
        if after not in self.passes:
            fix = did_you_mean(after, self.passes)
            raise OptionError(f"the preset does not run {after!r}", where=f"a preset that runs {name}", fix=fix)
        place = self.passes.index(after) + 1
        passes = (*self.passes[:place], name, *self.passes[place:])
        return replace(self, summary=summary, passes=passes, asked=(*self.asked, name))

    def __str__(self) -> str:
        """The row as a pipeline text."""
        return ",".join(f"{name}{{{self.settings[name]}}}" if name in self.settings else name for name in self.passes)


_EXACT = ("canonicalize-attention", "distinct-rows", "sink-row-repeats", "hoist-invariants", "dead-tail")
_OUTLINED = ("split-linears", "outline-regions")
_PUBLISHED = (*_EXACT, "adaptive-context", "sparse-attention", "outline-regions", "step-cache")
_ALL = (*_EXACT, "adaptive-context", "context-reuse", "sparse-attention", *_OUTLINED, "step-cache")
_NO_AGE = {"context-reuse": "age=0"}

PRESETS: dict[str, Preset] = {
    "off": Preset("Inductor as it is: the graph is not touched"),
    "exact": Preset("only rewrites that keep the mathematics", (*_EXACT, *_OUTLINED)),
    "sparse": Preset(
        "exact, and block-sparse attention over the token grid: approximate",
        (*_EXACT, "sparse-attention", *_OUTLINED),
        asked=("sparse-attention",),
    ),
    "context": Preset(
        "exact, and context frames chosen by where the camera goes: approximate",
        (*_EXACT, "adaptive-context", "context-reuse", *_OUTLINED),
        asked=("adaptive-context",),
        settings=_NO_AGE,
    ),
    "cache": Preset(
        "exact, and denoising steps reused where the camera returns: approximate",
        (*_EXACT, *_OUTLINED, "step-cache"),
        asked=("step-cache",),
    ),
    "all": Preset(
        "the default: sparse, context and cache together, approximate, where cameras or a trajectory say what matters; "
        "exact for any other model",
        _ALL,
        settings=_NO_AGE,
    ),
    "published": Preset(
        "all, by the rules and constants of the Light Interaction release: the baseline of comparisons",
        _PUBLISHED,
        asked=("adaptive-context", "sparse-attention", "step-cache"),
        settings={
            "adaptive-context": "rules=published",
            "sparse-attention": "density=0.3,context-density=0.175,keep-current=true,skipped-means=0,skip-first=1",
            "step-cache": "rules=published,strategy=hold,drift=none",
        },
        whole=True,
    ),
}

GROUP = "lightint.presets"
"""Entry points of other packages: the preset's name, and ``module:attribute`` of a :class:`Preset`."""


def preset_names() -> list[str]:
    """Every name of a preset."""
    return names(GROUP, PRESETS)


def preset_of(name: str) -> Preset:
    """The preset called ``name``.

    Raises:
        OptionError: there is none; with a hint.
        ExtensionError: another package registers it, and it cannot be imported or runs a pass that does not exist.
    """
    return PRESETS[name] if name in PRESETS else _of_another_package(name)


@functools.cache
def _of_another_package(name: str) -> Preset:
    found = extension(GROUP, name, PRESETS)
    if found is None:
        fix = did_you_mean(name, preset_names())
        raise OptionError(f"{name!r} is no preset", where="options['preset']", fix=fix)
    return checked(found)


def checked(found: Extension) -> Preset:
    """The preset that an entry point names.

    Raises:
        ExtensionError: it cannot be imported, is no preset, or its passes and settings are no pipeline.
    """
    from lightint_compile.passes.pipeline import Pipeline

    preset = found.load()
    if not isinstance(preset, Preset):
        raise found.error("this is no preset", f"it is a {type(preset).__name__}")
    try:
        Pipeline.parse(str(preset))
    except OptionError as error:
        raise found.error("the preset cannot be run", told(error)) from error
    return preset
