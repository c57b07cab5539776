"""How often a budget is exceeded by the size of its calibration: as all choices of walks say, one by one."""

from __future__ import annotations

import random
from itertools import combinations
from statistics import fmean, median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightint_compile.evaluating import calibration_size
from lightint_compile.evaluating.calibration_size import SIZES, by_size, kept, smallest_budget
from lightint_compile.options.error_limits import MARGIN

Walks = list[list[float]]


def one_by_one(errors: Walks, walks: int) -> tuple[float, float, float]:
    """Of every choice of walks for a calibration: the mean share over, those that miss the goal, the median budget."""
    over, budgets = [], []
    for seen in combinations(range(len(errors)), walks):
        allowed = max(error for place in seen for error in errors[place]) / MARGIN
        others = [error for place, walk in enumerate(errors) if place not in seen for error in walk]
        over.append(sum(error > allowed for error in others) / len(others))
        budgets.append(allowed)
    return fmean(over), sum(share > 0.01 for share in over) / len(over), median(budgets)


@st.composite
def measured(draw: st.DrawFn) -> tuple[Walks, int]:
    chunks = draw(st.integers(1, 3))
    error = st.sampled_from((0.0, 0.01, 0.012, 0.02, 0.03, 0.3))
    walk = st.lists(error, min_size=chunks, max_size=chunks)
    errors = draw(st.lists(walk, min_size=2, max_size=7))
    return errors, draw(st.integers(1, min(5, len(errors) - 1)))


@settings(max_examples=150)
@given(measured())
def test_of_few_walks_all_choices_count_and_the_worst_of_each(drawn: tuple[Walks, int]) -> None:
    assert kept(*drawn) == pytest.approx(one_by_one(*drawn), abs=1e-12)


def test_choices_that_are_drawn_say_what_all_say(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    errors = [[draw.lognormvariate(-5, 1) for _ in range(3)] for _ in range(14)]
    exact = kept(errors, 8)
    monkeypatch.setattr(calibration_size, "DRAWN", 1500)
    assert kept(errors, 8) == pytest.approx(exact, rel=0.15, abs=0.01) and kept(errors, 8) == kept(errors, 8)


def test_more_walks_exceed_less_and_sizes_leave_some_to_judge() -> None:
    errors = [[0.01 * 1.5**place, 0.0] for place in range(13)]
    told = by_size(errors)
    assert list(told) == ["1", "3", "6", "12"] and max(SIZES) > 13
    over = [each.over for each in told.values()]
    assert over == sorted(over, reverse=True) and over[0] > 0.2
    assert told["12"].over == 0, "what the spread of twelve allows is above the largest of these"


def test_walks_that_differ_much_allow_smaller_budgets_less() -> None:
    """Under the same worst error, what the others were counts; six of a kind leave the margin alone."""
    alike, apart = ([0.1, *(each for _ in range(7))] for each in (0.09, 0.002))
    assert smallest_budget(alike) == pytest.approx(0.1 / MARGIN)
    assert smallest_budget(apart) > 0.2
    assert smallest_budget(apart[:5]) == pytest.approx(0.1 / MARGIN), "too few for a spread"
