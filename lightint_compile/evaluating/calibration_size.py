"""How often a budget is exceeded behind a calibration on so many walks: from errors that were measured on all of them.

Of ``N`` walks, ``n`` stand for those of a calibration, and the others for those that come later: all choices where they
are few, else as many as are drawn. Errors of one walk are alike, so it is walks that count, not chunks.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from lightint_compile.error_budget.table import Measured
from lightint_compile.options.error_limits import MARGIN, Deviation

SIZES = (1, 3, 6, 12, 24)
"""Numbers of walks that are told of, where there are more."""

DRAWN = 2000
"""Choices of walks that are looked at where there are more."""

GOAL = 0.01
"""The share of chunks that may be over a budget."""


class Kept(NamedTuple):
    """What calibrations of one size come to, each with the smallest budget that it allows.

    Attributes:
        over: share of chunks over the budget, on walks that the calibration does not see; the mean of all choices.
        missed: share of calibrations behind which that is more than :data:`GOAL`.
        budget: the median of the budgets.
    """

    over: float
    missed: float
    budget: float


def kept(errors: Sequence[Sequence[float]], walks: int) -> Kept:
    """See :class:`Kept`.

    Args:
        errors: of each walk, those of its chunks; as many chunks in each.
        walks: how many of them the calibration sees, at least one and not all.
    """
    worst = [max(walk) for walk in errors]
    over, budgets = [], []
    for seen in _choices(len(errors), walks):
        allowed = smallest_budget(worst[place] for place in seen)
        others = [error for place, walk in enumerate(errors) if place not in seen for error in walk]
        over.append(sum(error > allowed for error in others) / len(others))
        budgets.append(allowed)
    missed = sum(share > GOAL for share in over) / len(over)
    return Kept(statistics.fmean(over), missed, statistics.median(budgets))


def smallest_budget(worst: Iterable[float]) -> float:
    """The smallest ``max_relative_error`` that a calibration on walks with these worst errors keeps."""
    rollouts = tuple(map(Deviation, worst))
    deviation = max(rollouts, key=lambda each: each.relative)
    return Measured("", deviation, len(rollouts), rollouts=rollouts).counted.relative / MARGIN


def _choices(count: int, chosen: int) -> Iterator[frozenset[int]]:
    if math.comb(count, chosen) <= DRAWN:
        yield from map(frozenset, itertools.combinations(range(count), chosen))
        return
    draw = random.Random(0)
    for _ in range(DRAWN):
        yield frozenset(draw.sample(range(count), chosen))


def by_size(errors: Sequence[Sequence[float]]) -> dict[str, Kept]:
    """:func:`kept` for each of :data:`SIZES` that leaves walks to judge, by that number."""
    return {str(walks): kept(errors, walks) for walks in SIZES if walks < len(errors)}
