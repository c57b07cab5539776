"""Tensors that stay: the same object as in an earlier call, told apart by a number that all ranks give alike.

An address says less: what was freed may lie where something else did, on one rank and not on another.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

_ATTRIBUTE = "_lightint_stays"

_drivers = itertools.count()


class _Mark:
    """Stands on a tensor for as long as that lives. A copy or a file of the tensor holds an empty dictionary.

    Attributes:
        serials: what each driver calls the tensor, by the driver's number. Another driver may run on one rank alone.
    """

    def __init__(self) -> None:
        self.serials: dict[int, int] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, ()


def memory_of(value: Tensor) -> int:
    """Where the memory begins that a tensor is in; 0 for one without any."""
    return value.untyped_storage().data_ptr()


class Staying:
    """What stays in the call at hand of one driver, by the memory that it is in."""

    def __init__(self) -> None:
        self._driver, self._next = next(_drivers), itertools.count(1)
        self._serials: dict[int, int] = {}
        self._places: WeakKeyDictionary[_Mark, int] = WeakKeyDictionary()

    def arrive(self, args: Iterable[Any]) -> bool:
        """A call with these arguments begins; whether one that stays lies elsewhere than it did."""
        self._serials = {}
        moved = False
        for value in args:
            if not isinstance(value, Tensor) or isinstance(value, nn.Parameter):
                continue
            if self.met(value):
                mark, place = getattr(value, _ATTRIBUTE), value.data_ptr()
                moved |= self._places.setdefault(mark, place) != place
                self._places[mark] = place
        return moved

    def met(self, value: Tensor) -> bool:
        """Whether a tensor was met before; one that was not is known from now on."""
        mark = getattr(value, _ATTRIBUTE, None)
        if not isinstance(mark, _Mark):
            mark = _Mark()
            setattr(value, _ATTRIBUTE, mark)
        if self._driver not in mark.serials:
            mark.serials[self._driver] = next(self._next)
            return False
        self._serials[memory_of(value)] = mark.serials[self._driver]
        return True

    def serial_of(self, value: Tensor) -> int | None:
        """The number of the tensor that has the memory of ``value``; ``None`` where it does not stay."""
        return self._serials.get(memory_of(value))
