"""Spellings of attention whose keys and values are written into the caller's buffers first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from attention_spellings import Calls, Spelling


class FromBuffers(Calls):
    """The function of keys and values that are written into buffers of the caller's, and read from a window of these.

    Args:
        axes: which arguments, and the axis of their tokens; a buffer for each is given behind all arguments.
    """

    def __init__(self, run: Callable[..., Any], axes: dict[int, int]) -> None:
        super().__init__(run)
        self.axes = axes

    def forward(self, *args: torch.Tensor) -> Any:
        given, buffers = list(args[: -len(self.axes)]), args[-len(self.axes) :]
        for (index, axis), buffer in zip(self.axes.items(), buffers, strict=True):
            buffer.narrow(axis, 1, given[index].shape[axis]).copy_(given[index])
            given[index] = buffer.narrow(axis, 1, given[index].shape[axis])
        return self.run(*given)

    def buffers(self, args: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """A buffer for each, with room in front and behind."""
        sizes = [[size + 3 * (d == axis) for d, size in enumerate(args[i].shape)] for i, axis in self.axes.items()]
        return [args[i].new_zeros(size) for i, size in zip(self.axes, sizes, strict=True)]


def kept_axes(spelling: Spelling) -> dict[int, int]:
    """The axis of tokens of each argument that may be kept: keys and values."""
    letters = spelling.shapes.split()
    return {index: each.index("t") for index, each in enumerate(letters) if "t" in each and not {"s", "?"} & {*each}}
