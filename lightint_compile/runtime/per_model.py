"""Whose call a decision belongs to: modules of one class share compiled code, and must not share what was decided.

Dynamo compiles a class once where it can and passes weights as arguments, so one driver may serve several modules. The
first parameter among a call's arguments tells them apart. It carries a token that dies with it: a weak reference to the
parameter itself would keep ``torch.utils.swap_tensors`` from working, which ``Module.to`` may use.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import torch

T = TypeVar("T")

_ATTRIBUTE = "_lightint_owner"


class _Token:
    """Stands for a parameter for as long as that lives. A copy or a file of the parameter holds an empty dictionary."""

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, ()


class PerModel(Generic[T]):
    """One state for each model that calls, made when it first does and dropped with the model's weights.

    Attributes:
        latest: the state that was used last.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._nobody = self.latest = make()
        self._states: WeakKeyDictionary[_Token, T] = WeakKeyDictionary()
        self._calls = threading.local()
        self._lock = threading.Lock()

    @contextmanager
    def call(self, args: Sequence[Any]) -> Iterator[None]:
        """The calling thread is in a call with these arguments while the context lasts."""
        before = getattr(self._calls, "owner", None)
        self._calls.owner = _owner(args)
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
            tokens = filter(None, map(_token_of, parameters))
            return next((self._states[token] for token in tokens if token in self._states), self._nobody)

    def known(self, args: Sequence[Any]) -> T | None:
        """The state of the model that is called with these arguments, where it has one."""
        owner = _owner(args)
        if owner is None:
            return self._nobody
        token = _token_of(owner)
        with self._lock:
            return None if token is None else self._states.get(token)

    def all(self) -> list[T]:
        """Every state."""
        with self._lock:
            return [self._nobody, *self._states.values()]

    def _state(self, owner: torch.Tensor) -> T:
        token = _token_of(owner)
        if token is None:
            token = _Token()
            setattr(owner, _ATTRIBUTE, token)
        if token not in self._states:
            self._states[token] = self._make()
        return self._states[token]


def _token_of(parameter: torch.Tensor) -> _Token | None:
    found = getattr(parameter, _ATTRIBUTE, None)
    return found if isinstance(found, _Token) else None


def _owner(args: Sequence[Any]) -> torch.nn.Parameter | None:
    return next((value for value in args if isinstance(value, torch.nn.Parameter)), None)
