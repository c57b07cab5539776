"""Which rows of an input with a row a token differ: runs of equal rows, told by one read.

A timestep of every token has as many values as there are kinds of tokens, such as a clean first frame and the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightint_compile.passes.ir.decision_points import RowsPoint
from lightint_compile.runtime import device_to_host as transfer
from lightint_compile.runtime.content_check import Watch
from lightint_compile.runtime.content_sums import obstacle_now

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

FEWEST = 2
"""Runs that are told at least: kernels are compiled for any number of rows above one."""


def distinct_rows(spec: RowsPoint, watch: Watch, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Answers a rows point. The number of runs comes to the host together with the checksums of a call, if any wait.

    Where nothing can be read, every row is a run of its own: the values are the same, and nothing is saved.
    """
    if obstacle_now({rows.device.type for rows in inputs}):
        counts = [
            torch.arange(rows.shape[axis], device=rows.device) for rows, axis in zip(inputs, spec.axes, strict=True)
        ]
        return tuple(each for numbers in counts for each in (numbers, numbers))
    numbers = [run_numbers(rows, axis) for rows, axis in zip(inputs, spec.axes, strict=True)]
    found: list[Tensor] = []
    for number, runs in zip(numbers, _read([number[-1] + 1 for number in numbers], watch), strict=True):
        places = torch.arange(max(runs, FEWEST), device=number.device).clamp(max=runs - 1)
        found += [torch.searchsorted(number, places), number]
    return tuple(found)


def run_numbers(rows: Tensor, axis: int) -> Tensor:
    """int64 [tokens]: how many times the rows of ``rows`` [..., tokens, ...] changed before each, bit for bit."""
    bits = rows.detach().view(_BITS[rows.element_size()]).movedim(axis, 0).reshape(rows.shape[axis], -1)
    changed = (bits[1:] != bits[:-1]).any(1)
    return torch.nn.functional.pad(changed.cumsum(0), (1, 0))


def _read(counts: Sequence[Tensor], watch: Watch) -> list[int]:
    """``counts`` on the host; those that are there already cost no transfer."""
    check = watch.current()
    waiting = check.waiting() if check else []
    distant = [count for count in counts if count.device.type != "cpu"]
    numbers = transfer.together([*waiting, *distant])
    if check:
        check.arrived(numbers[: len(waiting)])
    told = iter(numbers[len(waiting) :])
    return [int(count) if count.device.type == "cpu" else int(next(told)) for count in counts]
