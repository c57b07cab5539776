"""Modules that a test accelerates; the fixture ``undone`` undoes it behind the test."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

import lightint_compile
from lightint_compile.acceleration.handle import Accelerated

Module = TypeVar("Module", bound=nn.Module)

_HANDLES: list[Accelerated] = []


def accelerated_here(module: Module, **options: Any) -> Module:
    """The module, accelerated in place until :func:`undo_all`."""
    _HANDLES.append(lightint_compile.accelerate(module, **options))
    return module


def undo_all() -> None:
    """What is accelerated is so no more, the last one first."""
    while _HANDLES:
        _HANDLES.pop().undo()
