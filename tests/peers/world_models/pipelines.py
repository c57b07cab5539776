"""Pipelines of diffusers, unmodified, made in ``tests/support/diffusers_pipelines.py``; each makes three videos."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from case import Case
from diffusers_pipelines import PIPELINES, Piped
from torch import Tensor


def _piped(make: Callable[[], Piped]) -> Case:
    def roll(call: Callable[..., Any]) -> list[Tensor]:
        return [call(seed) for seed in (1, 2, 3)]

    return Case("", lambda _: make(), roll)


CASES = {name: _piped(make) for name, make in PIPELINES.items()}
