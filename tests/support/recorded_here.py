"""Stretches recorded on a CPU: played, they read what lies at the addresses that they were recorded with."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from lightint_compile.lowering import stretches
from lightint_compile.runtime import recorded_stretch
from lightint_compile.runtime.stretch_arguments import once


class Recorded:
    """A recording as a CUDA graph is one: addresses are baked in, and results have one place for all plays.

    Nothing of the arguments is held: where their memory is given to something else, that is read.
    """

    held = 1000
    plays = 0

    def __init__(self, function: Callable[..., Sequence[Any]], args: Sequence[Any]) -> None:
        self._function = function
        self._args = [_Place(value) if isinstance(value, Tensor) else value for value in args]
        before = [once(place.there()).clone() if isinstance(place, _Place) else None for place in self._args]
        try:
            with torch.no_grad():
                self.outputs = function(*args)
        finally:  # nothing was done
            for place, value in zip(self._args, before, strict=True):
                if isinstance(place, _Place) and value is not None:
                    once(place.there()).copy_(value)

    def play(self, copies: Sequence[Tensor], originals: Sequence[Tensor]) -> None:
        type(self).plays += 1
        with torch.no_grad():
            for copy, original in zip(copies, originals, strict=True):
                copy.copy_(original)
            given = [value.there() if isinstance(value, _Place) else value for value in self._args]
            results = self._function(*given)
            for place, value in zip(self.outputs, results, strict=True):
                if place is not None:  # else it is shown by an argument
                    pytree.tree_map(_put, place, value)

    def forget(self) -> None:
        self.outputs = ()


class _Place:
    """Where a tensor lies, and how; not the tensor."""

    def __init__(self, value: Tensor) -> None:
        self._address, self._dtype = value.data_ptr(), value.dtype
        self._shape, self._strides = value.shape, value.stride()
        last = sum((size - 1) * stride for size, stride in zip(self._shape, self._strides, strict=True))
        self._bytes = (last + 1) * value.element_size() if value.numel() else 0

    def there(self) -> Tensor:
        if not self._bytes:
            return torch.empty_strided(self._shape, self._strides, dtype=self._dtype)
        memory = (ctypes.c_char * self._bytes).from_address(self._address)
        return torch.frombuffer(memory, dtype=self._dtype).as_strided(self._shape, self._strides)


def _put(place: Any, value: Any) -> None:
    if isinstance(place, Tensor):
        once(place).copy_(once(value))
    else:
        assert place == value, "a number that a recording gives is the same in every play"


def recorded_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let drivers that are made from now on record their work on the CPU."""
    monkeypatch.setattr(stretches, "KIND", "cpu")
    monkeypatch.setattr(recorded_stretch, "RECORDER", Recorded)
