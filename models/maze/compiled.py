"""A function of tensors that is compiled for CUDA, and runs as it is where that fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
Axes = dict[int, tuple[int, ...]]
"""Position of a tensor argument to its axes whose sizes change from call to call."""

_VARIANTS = 64
"""Variants of one function that may be compiled: with and without context, gradients, and a side of every size."""


class Compiled(Generic[Result]):
    """A function by `torch.compile`, for all sizes of some axes at once; a failure is one warning in the log."""

    def __init__(self, function: Callable[..., Result], axes: Axes) -> None:
        self._function, self._axes = function, axes
        self._compiled: Callable[..., Result] | None = torch.compile(function)

    def __call__(self, *arguments: Any) -> Result:
        """What the function returns for the same arguments."""
        if self._compiled is None:
            return self._function(*arguments)
        for place, axes in self._axes.items():
            if isinstance(arguments[place], Tensor):
                for axis in axes:
                    torch._dynamo.maybe_mark_dynamic(arguments[place], axis)
        try:
            with torch._dynamo.config.patch(recompile_limit=_VARIANTS):
                return self._compiled(*arguments)
        except torch._dynamo.exc.TorchDynamoException:
            name = getattr(self._function, "__name__", "the function")
            logging.getLogger(__name__).warning("%s runs uncompiled", name, exc_info=True)
            self._compiled = None
            return self._function(*arguments)
