"""What the errors of other rollouts stay within, told from those of some."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightint_compile.error_budget.rollout_spread import FEWEST, factor, limit
from lightint_compile.error_budget.table import Measured, Table
from lightint_compile.options.error_limits import MARGIN, Budget, Deviation

EXACT = {6: 3.708, 8: 3.187, 10: 2.911, 15: 2.566, 20: 2.396, 30: 2.220, 50: 2.065, 100: 1.927}
"""Factors for 95 % of the values with 95 % confidence, as tables of the noncentral t distribution have them."""


def of(*errors: float) -> list[Deviation]:
    return [Deviation(each, -20 * math.log10(each) if each else math.inf) for each in errors]


@pytest.mark.parametrize("count", EXACT)
def test_factors_are_those_of_the_tables(count: int) -> None:
    assert factor(count) == pytest.approx(EXACT[count], rel=0.015)


@pytest.mark.parametrize("count", [6, 12, 24])
def test_nineteen_of_twenty_calibrations_cover_nineteen_of_twenty_rollouts(count: int) -> None:
    """Of errors whose logarithms are normal, as the limit takes them to be."""
    draw, covered, error = random.Random(count), 0.0, 1.645
    for _ in range(2000):
        found = limit(of(*(draw.lognormvariate(0, 1) for _ in range(count))))
        assert found is not None
        covered += math.log(found.relative) >= error
    assert covered / 2000 == pytest.approx(0.95, abs=0.02)


def test_both_measures_have_one() -> None:
    found = limit(of(0.01, 0.02, 0.03, 0.02, 0.01, 0.02))
    assert found is not None and found.psnr == pytest.approx(-20 * math.log10(found.relative))
    assert limit([Deviation(each) for each in (0.1, 0.2, 0.1, 0.2, 0.1, 0.2)]) is not None, (
        "without a peak there is no PSNR"
    )


def test_rollouts_in_which_nothing_differed_tell_nothing() -> None:
    some = (0.01, 0.02, 0.04, 0.02, 0.01)
    assert len(some) == FEWEST - 1 and limit(of(*some)) is None is limit(of(*some, *(0.0,) * 9))
    assert limit(of(*some, 0.02)) == limit(of(0.0, *some, 0.02, 0.0))
    assert limit(of(*some, 0.02)) == limit([*of(*some, 0.02), Deviation(math.inf, -math.inf)]), "the worst says that"


def test_errors_of_one_size_leave_the_margin_alone_and_others_do_not() -> None:
    def row(*errors: float) -> Measured:
        found = Measured("a")
        for number, each in enumerate(of(*errors)):
            found = found.seen(each, number)
        return found

    alike, apart = row(*[0.04, 0.041] * 6), row(0.041, *[0.004] * 5, *[0.0005] * 6)
    assert alike.deviation == apart.deviation and alike.spread is not None and apart.spread is not None
    assert alike.counted == alike.deviation and apart.counted.relative == pytest.approx(MARGIN * apart.spread.relative)
    small = Budget(0.041 / MARGIN * 1.001)
    assert (Table((alike,)).choice(small), Table((apart,)).choice(small)) == (1, 0)
    reached = small.reached_by(apart.counted)
    assert Table((apart,)).choice(reached) == 1 and reached.allows(apart.spread) and "other rollouts" in str(apart)
    decibels = Budget(None, apart.spread.psnr)
    assert Table((apart,)).choice(decibels) == 1 and Table((apart,)).choice(Budget(None, apart.spread.psnr + 0.01)) == 0


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12), st.data())
def test_calls_of_a_rollout_count_once_in_whatever_order_they_are_seen(
    errors: list[float], data: st.DataObject
) -> None:
    """Those of a second pass over the same rollouts join those of the first."""
    numbers = sorted(data.draw(st.lists(st.integers(0, 3), min_size=len(errors), max_size=len(errors))))
    numbers = [sorted(set(numbers)).index(each) for each in numbers]
    row = Measured("a")
    for _ in range(2):
        for error, number in zip(of(*errors), numbers, strict=True):
            row = row.seen(error, number)
    worst = [max(e for e, n in zip(errors, numbers, strict=True) if n == number) for number in sorted(set(numbers))]
    assert [each.relative for each in row.rollouts] == worst and row.deviation.relative == max(errors)
    assert row.joined(row).rollouts == tuple(dict.fromkeys(row.rollouts)) and row.calls == 2 * len(errors)
    assert row.given_up().rollouts == row.rollouts[:-1], "the last was not measured to its end"
    assert Table.from_dict(Table((row,)).to_dict()) == Table((row,))
