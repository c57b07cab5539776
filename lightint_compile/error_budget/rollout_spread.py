"""How far the errors of other rollouts may be, told from how much those of calibrated ones differ.

The worst of ``n`` errors says little of the next where a few are much larger than the rest, as they are along camera
paths. Errors of one rollout are alike, so each counts once, by its worst call, and the logarithms of these are taken to
be normal. Their tolerance limit is what a share :data:`COVERED` of all rollouts stays within, with a confidence of
:data:`CONFIDENCE`: ``mean + k * deviation``, with ``k`` by M. G. Natrella, Experimental Statistics (NBS Handbook 91,
1963), section 2-5.3, which is within 1.5 % of the exact factor.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from lightint_compile.options.error_limits import Deviation

FEWEST = 6
"""Rollouts that tell a spread. With fewer the factor grows beyond 4, and what it says is about their number alone."""

COVERED = 0.95
"""The share of rollouts that a limit is for. One that exceeds it does so in some of its calls, so fewer calls do."""

CONFIDENCE = 0.95
"""The share of calibrations whose limit holds."""


def limit(worst: Iterable[Deviation]) -> Deviation | None:
    """What the worst call of another rollout stays within; ``None`` where too few rollouts say so.

    Rollouts in which nothing differed are left out: where a guard refused all, nothing is learnt of what it lets pass.

    Args:
        worst: the worst deviation of each rollout.
    """
    all_of_them = tuple(worst)
    relative = _upper([math.log(each.relative) for each in all_of_them if 0 < each.relative < math.inf])
    noise = _upper([-each.psnr for each in all_of_them if not math.isinf(each.psnr)])
    if relative is None:
        return None
    return Deviation(math.exp(min(relative, _LARGEST)), math.inf if noise is None else -noise)


_LARGEST = 700.0
"""Of logarithms of what a float holds."""


def _upper(values: Sequence[float]) -> float | None:
    if len(values) < FEWEST:
        return None
    return statistics.fmean(values) + factor(len(values)) * statistics.stdev(values)


def factor(count: int) -> float:
    """Standard deviations above the mean of ``count`` values, at least :data:`FEWEST`, at which their limit is."""
    covered, sure = (statistics.NormalDist().inv_cdf(share) for share in (COVERED, CONFIDENCE))
    scale = 1 - sure**2 / (2 * (count - 1))
    return (covered + math.sqrt(covered**2 - scale * (covered**2 - sure**2 / count))) / scale
