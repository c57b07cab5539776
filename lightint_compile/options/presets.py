"""Presets: the one table from a preset's name to the passes it runs.

A preset is on offer when every pass of its row exists; a new one is one new row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Preset:
    """One row: what it is for, its passes in order, and the passes a user names by choosing it.

    ``asked`` are the passes whose absence of any match is worth a warning: the reason to choose this preset.
    ``settings`` are options of passes, by the pass's name, as a pipeline text writes them.
    """

    summary: str
    passes: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The row as a pipeline text."""
        return ",".join(f"{name}{{{self.settings[name]}}}" if name in self.settings else name for name in self.passes)


_EXACT = ("canonicalize-attention", "sink-row-repeats", "hoist-invariants", "dead-tail")
_ALL = (*_EXACT, "adaptive-context", "sparse-attention", "outline-regions", "step-cache")
_KEEPING = (*_EXACT, "adaptive-context", "context-reuse", "sparse-attention", "outline-regions", "step-cache")
_NO_AGE = {"context-reuse": "age=0"}

PRESETS: dict[str, Preset] = {
    "off": Preset("Inductor as it is: the graph is not touched"),
    "exact": Preset("only rewrites that keep the mathematics", (*_EXACT, "outline-regions")),
    "sparse": Preset(
        "exact, and block-sparse attention over the token grid: approximate",
        (*_EXACT, "sparse-attention", "outline-regions"),
        asked=("sparse-attention",),
    ),
    "context": Preset(
        "exact, and context frames chosen by where the camera goes: approximate",
        (*_EXACT, "adaptive-context", "context-reuse", "outline-regions"),
        asked=("adaptive-context",),
        settings=_NO_AGE,
    ),
    "cache": Preset(
        "exact, and denoising steps reused where the camera returns: approximate",
        (*_EXACT, "outline-regions", "step-cache"),
        asked=("step-cache",),
    ),
    "all": Preset(
        "the default: sparse, context and cache together, approximate, where cameras or a trajectory say what matters; "
        "exact for any other model",
        _KEEPING,
        settings=_NO_AGE,
    ),
    "published": Preset(
        "all, by the rules and constants of the Light Interaction release: the baseline of comparisons",
        _ALL,
        asked=("adaptive-context", "sparse-attention", "step-cache"),
        settings={
            "adaptive-context": "rules=published",
            "sparse-attention": "density=0.3,context-density=0.175,keep-current=true,skipped-means=0,skip-first=1",
            "step-cache": "rules=published,strategy=hold,drift=none",
        },
    ),
}
