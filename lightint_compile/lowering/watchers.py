"""Functions that are called through whoever watches them; watchers come and go in any order, also in several threads.

What is called is always made of the function itself and of those who watch it now: nothing of a watcher stays behind.
No frame of Python stands between a caller and the watcher: who times a driver reads the caller's line.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any


@dataclass(eq=False)
class _Watching:
    names: frozenset[str]
    watcher: Callable[..., Any]


class Watchers:
    """Who watches some functions.

    Args:
        space: where callers find the functions by name.
        functions: the functions themselves.
    """

    def __init__(self, space: dict[str, Any], functions: Mapping[str, Callable[..., Any]]) -> None:
        self._space, self._functions = space, dict(functions)
        self._watching: list[_Watching] = []
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        """Whether there is anybody."""
        return bool(self._watching)

    @contextmanager
    def added(self, names: Iterable[str], watcher: Callable[..., Any]) -> Iterator[None]:
        """Calls of these functions go through ``watcher(name, function, *arguments)`` while the context lasts."""
        own = _Watching(frozenset(names), watcher)
        with self._lock:
            self._watching.append(own)
            self._put(own.names)
        try:
            yield
        finally:
            with self._lock:
                self._watching.remove(own)
                self._put(own.names)

    def _put(self, names: Iterable[str]) -> None:
        for name in names:
            function = self._functions[name]
            for each in self._watching:
                function = partial(each.watcher, name, function) if name in each.names else function
            self._space[name] = function


class CallWatchers:
    """Who watches the calls of one thing, whatever function that runs at the time."""

    def __init__(self) -> None:
        self._watching: tuple[_Watching, ...] = ()
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        """Whether there is anybody."""
        return bool(self._watching)

    @contextmanager
    def added(self, watcher: Callable[..., Any]) -> Iterator[None]:
        """Calls go through ``watcher(function, *arguments)`` while the context lasts."""
        own = _Watching(frozenset(), watcher)
        with self._lock:
            self._watching = (*self._watching, own)
        try:
            yield
        finally:
            with self._lock:
                self._watching = tuple(each for each in self._watching if each is not own)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` as it is called now."""
        for each in self._watching:
            function = partial(each.watcher, function)
        return function
