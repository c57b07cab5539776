"""What a code base is to the run: how to make a tiny model of it, and the loop that its pipeline has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

HEADS, WIDTH, LAYERS, FRAME, TEXT = 2, 64, 3, 64, 8
"""Sizes of tiny models; a frame has 16 x 16 latents, which are 64 tokens."""

Roll = Callable[[Callable[..., Any]], list[Tensor]]


@dataclass(frozen=True)
class Case:
    """One code base.

    Attributes:
        folder: the name of the checkout; empty where the code is installed.
        build: makes the model from the checkout, or what holds a pipeline as ``pipe``.
        roll: calls it.
        rounding: relative difference that another order of sums makes; more where the model computes in bfloat16.
        more, late: graphs beyond those of Dynamo alone, and of these in the last third of the calls, that conditions of
            the code's own take where it is one graph: Dynamo alone breaks in front of them.
        memos: dictionaries that ``accelerate`` is told of.
    """

    folder: str
    build: Callable[[Path], Any]
    roll: Roll
    rounding: float = 1e-5
    more: int = 0
    late: int = 0
    memos: tuple[str, ...] = ()
