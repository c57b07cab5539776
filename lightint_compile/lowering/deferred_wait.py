"""Waiting once for the C++ compilers of many regions.

Inductor hands a region's kernels to a pool of compilers and waits for them before it returns. While one region waits,
the next could be lowered, and a region with one kernel keeps one core busy. Here the waiting is put off until every
region has been lowered, for what this thread compiles; other threads wait as ever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import CodeCacheFuture, LambdaFuture

_Wait = Callable[[AsyncCompile, dict[str, Any]], None]


class _PutOff:
    """Stands in for Inductor's waiting as long as any thread puts it off."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0
        self._original: _Wait = AsyncCompile._wait_futures
        self._mine = threading.local()

    @contextmanager
    def in_this_thread(self) -> Iterator[list[tuple[AsyncCompile, dict[str, Any]]]]:
        waiting: list[tuple[AsyncCompile, dict[str, Any]]] = []
        outer = getattr(self._mine, "waiting", None)
        self._install(+1)
        self._mine.waiting = waiting
        try:
            yield waiting
        finally:
            self._mine.waiting = outer
            self._install(-1)

    def wait(self, pool: AsyncCompile, scope: dict[str, Any]) -> None:
        """Inductor's own waiting."""
        self._original(pool, scope)

    def _install(self, change: int) -> None:
        with self._lock:
            if self._threads == 0:
                self._original = AsyncCompile._wait_futures
                AsyncCompile._wait_futures = self._asked()  # type: ignore[assignment,method-assign]
            self._threads += change
            if self._threads == 0:
                AsyncCompile._wait_futures = self._original  # type: ignore[assignment,method-assign]

    def _asked(self) -> _Wait:
        def wait_or_put_off(pool: AsyncCompile, scope: dict[str, Any]) -> None:
            waiting = getattr(self._mine, "waiting", None)
            if waiting is not None and all(map(_is_of_cpp, scope.values())):
                waiting.append((pool, scope))
            else:
                self.wait(pool, scope)

        return wait_or_put_off


_PUT_OFF = _PutOff()


@contextmanager
def one_wait_for_all_kernels() -> Iterator[None]:
    """Regions compiled inside must not be called before the end, when all their kernels exist.

    Only kernels that a C++ compiler makes are waited for later: those of Triton are packed into artifacts at once.

    Raises:
        Exception: what a compiler reports, at the end.
    """
    with _PUT_OFF.in_this_thread() as waiting:
        yield
    for pool, scope in waiting:
        _PUT_OFF.wait(pool, scope)


def _is_of_cpp(value: Any) -> bool:
    """Whether a name of a generated module is no kernel at all, or one that a C++ compiler is making."""
    if isinstance(value, LambdaFuture):
        return value.future is None
    return not isinstance(value, (Future, CodeCacheFuture))
