"""A guarded step of a batch: on one side where all elements agree, element by element where they do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightint_compile.passes.analysis.batch_elements.rows import join, take
from lightint_compile.passes.step_cache.per_element import Join, Split

Side = Callable[..., tuple[Tensor, ...]]
"""One side of a step: operands to results."""


def choose_each(
    reused: Sequence[bool],
    reuse: Side,
    compute: Side,
    reuse_row: Side,
    compute_row: Side,
    splits: Sequence[Split],
    joins: Sequence[Join],
    operands: Sequence[Any],
) -> tuple[Tensor, ...]:
    """The results of a step of which ``reused`` says for each element whether it is reused.

    Numbers that were decided for each element (the sigmas that a prediction is extrapolated from) are [B] instead of
    [] from the first step on that elements go through apart; only a computed step takes those for the whole batch.
    """
    if not any(reused):
        return compute(*operands)
    if all(reused) and not any(_is_of_each(value, split) for value, split in zip(operands, splits, strict=True)):
        return reuse(*operands)
    rows = []
    for element, may in enumerate(reused):
        own = (_row(value, split, len(reused), element) for value, split in zip(operands, splits, strict=True))
        rows.append((reuse_row if may else compute_row)(*own))
    return tuple(
        torch.stack(values) if how is None else join(values, *how)
        for values, how in zip(zip(*rows, strict=True), joins, strict=True)
    )


def _row(value: Any, split: Split, count: int, element: int) -> Any:
    """The part of an operand that one of ``count`` elements reads."""
    if split:
        return take(value, *split, count, element)
    return value[element] if _is_of_each(value, split) else value


def _is_of_each(value: Any, split: Split) -> bool:
    """Whether an operand is a number that was decided for each element."""
    return split == () and bool(value.dim())
