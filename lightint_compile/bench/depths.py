"""Numbers of blocks that stand for all of a model's: those whose cost lies on a straight line to its own number.

Blocks may be of several kinds (half of them with an action module, say). A few blocks then stand for all of them only
where each kind has the same share. Parameters tell: they are counted without weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightint_compile.errors import OptionError
from lightint_compile.models.world_model import WorldModel


def default_depths(model: WorldModel, first: tuple[int, int]) -> tuple[int, int]:
    """``first`` where it stands for the model, else twice as many blocks."""
    return first if on_line(model, first) else (2 * first[0], 2 * first[1])


def check_depths(model: WorldModel, depths: Sequence[int], option: str) -> None:
    """Raise OptionError, naming ``option``, for two numbers of blocks or more that do not stand for the model."""
    if len(set(depths)) > 1 and not on_line(model, depths):
        why = f"blocks are of several kinds, which have other shares in {', '.join(map(str, depths))} blocks"
        what = f"these depths are not on a line to {model.depth} blocks"
        raise OptionError(what, where=option, why=why, fix="give even numbers")


def on_line(model: WorldModel, depths: Sequence[int]) -> bool:
    """Whether the parameters of the model lie on a straight line through those with ``depths`` blocks."""
    low, *more = sorted({*depths, model.depth})
    start, end = parameters(model, low), parameters(model, model.depth)
    return all(
        (parameters(model, depth) - start) * (model.depth - low) == (end - start) * (depth - low) for depth in more
    )


def parameters(model: WorldModel, depth: int) -> int:
    """How many a module of so many blocks has."""
    return sum(each.numel() for each in model.at_depth(depth).module("meta").parameters())
