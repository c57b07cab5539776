"""Drawn programs that keep what a tensor holds, write over it, and use what was kept: in place, shifted or swapped.

Every kept value is a copy by the source, so that eager is never in doubt. Compilers take many of these copies for the
value itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ROWS, COLUMNS = 12, 16

COPIES: dict[str, Callable[[Tensor], Tensor]] = {
    "clone": torch.clone,
    "times-one": lambda x: x * 1,
    "plus-nothing": lambda x: x + 0,
    "to": lambda x: x.to(x.dtype, copy=True),
    "filled": lambda x: torch.empty_like(x).copy_(x),
    "repeat": lambda x: x.repeat(*([1] * x.dim())),
    "cat": lambda x: torch.cat([x[:1], x[1:]]),
    "flat": lambda x: x.reshape(-1).clone().view(x.shape),
    "computed": lambda x: x * 0.5 + 1,
}
"""How a value is kept."""

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "as-is": lambda x: x,
    "flip-rows": lambda x: x.flip(0),
    "flip-columns": lambda x: x.flip(1),
    "roll": lambda x: x.roll(1, 1),
    "halves": lambda x: torch.cat([x[:, 8:], x[:, :8]], 1),
    "blocks": lambda x: x.reshape(x.shape[0], 4, 4).transpose(1, 2).reshape(x.shape),
    "unbound": lambda x: torch.stack(x.unbind(1), 1),
}
"""Where the kept value is looked at."""


def _put(rows: Tensor, value: Tensor) -> None:
    rows[torch.arange(len(value))] = value


WRITES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "copy": lambda rows, value: rows.copy_(value),
    "add": lambda rows, value: rows.add_(value),
    "lerp": lambda rows, value: rows.lerp_(value, 0.25),
    "put": _put,
    "index-copy": lambda rows, value: rows.index_copy_(0, torch.arange(len(value)), value),
    "index-add": lambda rows, value: rows.index_add_(0, torch.arange(len(value)), value),
    "scatter": lambda rows, value: rows.scatter_(0, torch.arange(len(value))[:, None].expand(value.shape), value),
    "columns": lambda rows, value: rows[:, 1:].copy_(value[:, :-1]),
    "masked": lambda rows, value: rows.copy_(torch.where(value > 0, value, rows)),
    "foreach": lambda rows, value: torch._foreach_add_([rows], [value]),
}
"""How rows are written to."""


@dataclass(frozen=True)
class Step:
    """Keep rows of one tensor, or write kept rows to another."""

    target: int
    start: int
    size: int
    how: str
    view: str = ""
    kept: int = -1


@dataclass(frozen=True)
class Overwriting:
    """A program of two inputs, a buffer and a temporary; ``steps`` are what it does, in order."""

    steps: tuple[Step, ...]

    def __call__(self, a: Tensor, b: Tensor, c: Tensor, weight: Tensor) -> Tensor:
        """What is left of a temporary and of what was kept; the first three are written to."""
        tensors = [a, b, c, a @ weight]
        kept: list[Tensor] = []
        for step in self.steps:
            rows = tensors[step.target][step.start : step.start + step.size]
            if step.view:
                kept.append(COPIES[step.how](VIEWS[step.view](rows)))
            else:
                WRITES[step.how](rows, kept[step.kept][: step.size])
        return tensors[3].sum(1)


def drawn(seed: int) -> Overwriting:
    """The program of a seed."""
    draw = random.Random(seed)
    tensors, steps, sizes = draw.sample(range(4), draw.randint(1, 3)), [], []
    for _ in range(draw.randint(1, 3)):
        views = ["as-is"] if draw.random() < 0.6 else list(VIEWS)
        ways = ["clone"] if draw.random() < 0.5 else list(COPIES)
        for _ in range(draw.randint(1, 2)):
            size = draw.choice((ROWS, ROWS - 1, 5))
            start = draw.randint(0, ROWS - size)
            steps.append(Step(draw.choice(tensors), start, size, draw.choice(ways), draw.choice(views)))
            sizes.append(size)
        for _ in range(draw.randint(1, 3)):
            source = draw.randrange(len(sizes))
            start = draw.randint(0, ROWS - sizes[source])
            how = "copy" if draw.random() < 0.5 else draw.choice(list(WRITES))
            steps.append(Step(draw.choice(tensors), start, sizes[source], how, kept=source))
    return Overwriting(tuple(steps))


def inputs(seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Arguments of such a program."""
    made = torch.Generator().manual_seed(seed)
    sizes = [(ROWS, COLUMNS)] * 3 + [(COLUMNS, COLUMNS)]
    return [(torch.randint(-8, 9, size, generator=made) / 4).to(dtype) for size in sizes]
