"""Variants of a test of which some run by default and the others in ``make slow``."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mostly_slow(variants: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """Parameters of a test; those that are not ``quick`` are marked slow."""
    return [each if each in quick else pytest.param(each, marks=pytest.mark.slow) for each in variants]
