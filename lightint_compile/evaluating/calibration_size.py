"""How often a budget is exceeded behind a calibration on so many walks: from errors that were measured on all of them.

Of ``N`` walks, ``n`` stand for those of a calibration, and the others for those that come later. The expectation over
all choices of ``n`` is computed as it is, without drawing any. Errors of one walk are alike, so it is walks that count,
not chunks: the next one, if it is drawn alike, is worse than ``n`` others once in ``n + 1`` times (V. Vovk, A.
Gammerman and G. Shafer, Algorithmic Learning in a Random World, 2005).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

from lightint_compile.options.error_limits import MARGIN

SIZES = (1, 3, 6, 12, 24, 36)
"""Numbers of walks that are told of, where there are more."""


def share_over(errors: Sequence[Sequence[float]], walks: int) -> float:
    """The share of chunks, on walks that a calibration did not see, whose error is over the smallest budget it allows.

    Args:
        errors: of each walk, those of its chunks; as many chunks in each.
        walks: how many of them the calibration sees, at least one and not all.
    """
    ordered = sorted(errors, key=max)
    expected = 0.0
    for place in range(walks - 1, len(ordered)):  # the place of the worst walk that the calibration sees
        allowed = max(ordered[place]) / MARGIN
        over = sum(error > allowed for walk in ordered[place + 1 :] for error in walk)
        expected += comb(place, walks - 1) * over
    unseen = sum(map(len, ordered)) * (len(ordered) - walks) / len(ordered)
    return expected / comb(len(ordered), walks) / unseen


def shares(errors: Sequence[Sequence[float]]) -> dict[str, float]:
    """:func:`share_over` for each of :data:`SIZES` that leaves walks to judge, by that number."""
    return {str(walks): share_over(errors, walks) for walks in SIZES if walks < len(errors)}
