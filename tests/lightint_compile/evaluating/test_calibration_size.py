"""How often a budget is exceeded by the size of its calibration: as all choices of walks say, one by one."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightint_compile.evaluating.calibration_size import SIZES, share_over, shares
from lightint_compile.options.error_limits import MARGIN

Walks = list[list[float]]


def one_by_one(errors: Walks, walks: int) -> float:
    """The mean over every choice of walks for a calibration."""
    found = []
    for seen in combinations(range(len(errors)), walks):
        allowed = max(error for place in seen for error in errors[place]) / MARGIN
        others = [error for place, walk in enumerate(errors) if place not in seen for error in walk]
        found.append(sum(error > allowed for error in others) / len(others))
    return sum(found) / len(found)


@st.composite
def measured(draw: st.DrawFn) -> tuple[Walks, int]:
    chunks = draw(st.integers(1, 3))
    error = st.sampled_from((0.0, 0.01, 0.012, 0.02, 0.03, 0.3))
    walk = st.lists(error, min_size=chunks, max_size=chunks)
    errors = draw(st.lists(walk, min_size=2, max_size=7))
    return errors, draw(st.integers(1, len(errors) - 1))


@settings(max_examples=150)
@given(measured())
def test_it_is_the_mean_over_all_choices(drawn: tuple[Walks, int]) -> None:
    assert share_over(*drawn) == pytest.approx(one_by_one(*drawn), abs=1e-12)


def test_more_walks_exceed_less_and_sizes_leave_some_to_judge() -> None:
    errors = [[0.01 * 1.5**place, 0.0] for place in range(13)]
    told = shares(errors)
    assert list(told) == ["1", "3", "6", "12"] and max(SIZES) > 13
    assert list(told.values()) == sorted(told.values(), reverse=True)
    assert told["12"] == pytest.approx(1 / 13 / 2), "the worst of 13 walks is the one left out, in one of two chunks"
