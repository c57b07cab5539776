"""What is decided, by which rules and thresholds: plain data that travels from a pass to the runtime and to disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightint_compile.errors import OptionError, did_you_mean
from lightint_compile.passes.ir.world_spec import WorldSpec

RULES = ("adaptive", "published")
"""Whose rules decide: ours, or those of the Light Interaction release with its constants."""

STRATEGIES = ("hold", "extrapolate", "residual")
"""What a reused step gives: the latest computed prediction, the line in sigma through the two latest, or what follows
from the step's own first block and the latest computed residual of the others."""


@dataclass(frozen=True, kw_only=True)
class Policy(WorldSpec):
    """How one program's chunks are decided, and in which world.

    Attributes:
        rules: one of :data:`RULES`.
        adapt_context: whether context frames are decided; else the model's own are only recorded.
        given: whether the context arrives as an input: frames are then positions in it, and it need not be a history.
        steps: the interior denoising steps that may be reused; empty for none.
        each: whether steps are decided for every element of a batch by itself; else all elements must agree.
        outside: whether the program is one step of a loop outside of it: which steps there are is seen at run time.
        overlap: overlap from which a view counts as seen before; ``None`` leaves it to the rules.
        age: most chunks for which keys and values of a context frame are kept; 0 keeps none.
        kept_frames: most frames of which they are kept; ``None``, or fewer than ``memory``, for as many as that.
        fitting: most frames of which they fit into the memory that is given them; ``None`` for no bound.
        drift: relative change of kept values, seen when they are computed again, from which they are kept for less
            long.
    """

    rules: str = "adaptive"
    adapt_context: bool = False
    given: bool = False
    steps: tuple[int, ...] = ()
    each: bool = False
    outside: bool = False
    overlap: float | None = None
    age: int = 0
    kept_frames: int | None = None
    fitting: int | None = None
    drift: float | None = None

    @property
    def slots(self) -> int:
        """Frames whose keys and values are held at once."""
        wanted = max(self.kept_frames or 0, self.memory)
        return wanted if self.fitting is None else min(wanted, self.fitting)

    def agrees_with(self, other: Policy) -> bool:
        """Whether both decide by the same rules, and by the same facts as far as no program says them."""
        return all(
            getattr(self, name) == getattr(other, name) for name in ("rules", "overlap", "clip", "fov", "view_depth")
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data; :meth:`from_dict` takes it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Policy:
        """The inverse of :meth:`to_dict`, also after a way through JSON."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**fields)


def check_rules(rules: str, where: str) -> None:
    """Raise :class:`OptionError` unless ``rules`` is one of :data:`RULES`."""
    if rules not in RULES:
        raise OptionError(f"there are no rules called {rules!r}", where=where, fix=did_you_mean(rules, RULES))


def check_overlap(overlap: float | None, where: str) -> None:
    """Raise :class:`OptionError` unless ``overlap`` is a share."""
    if overlap is not None and not 0 <= overlap <= 1:
        why, fix = "it is a share, from 0 to 1", "for example overlap=0.7"
        raise OptionError(f"an overlap of {overlap} does not exist", where=where, why=why, fix=fix)
