"""Whose call a decision belongs to: modules of one class share compiled code, and must not share what was decided.

Dynamo compiles a class once where it can and passes weights as arguments, so one driver may serve several modules. The
first parameter among a call's arguments tells them apart.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch.utils.weak import WeakIdKeyDictionary

T = TypeVar("T")


class PerModel(Generic[T]):
    """One state for each model that calls, made when it first does and dropped with the model's weights.

    Attributes:
        latest: the state that was used last.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._nobody = self.latest = make()
        self._states: Any = WeakIdKeyDictionary()
        self._calls = threading.local()
        self._lock = threading.Lock()

    @contextmanager
    def call(self, args: Sequence[Any]) -> Iterator[None]:
        """The calling thread is in a call with these arguments while the context lasts."""
        before = getattr(self._calls, "owner", None)
        self._calls.owner = next((value for value in args if isinstance(value, torch.nn.Parameter)), None)
        try:
            yield
        finally:
            self._calls.owner = before

    def current(self) -> T:
        """The state of the model whose call this thread is in."""
        owner = getattr(self._calls, "owner", None)
        with self._lock:
            self.latest = self._nobody if owner is None else self._state(owner)
            return self.latest

    def of(self, parameters: Iterable[torch.Tensor]) -> T:
        """The state of the model that has these parameters; that of calls without any when it has not called."""
        with self._lock:
            return next((self._states[each] for each in parameters if each in self._states), self._nobody)

    def all(self) -> list[T]:
        """Every state."""
        with self._lock:
            return [self._nobody, *self._states.values()]

    def _state(self, owner: torch.Tensor) -> T:
        if owner not in self._states:
            self._states[owner] = self._make()
        found: T = self._states[owner]
        return found
