"""Waiting once for the C++ compilers of many regions.

Inductor hands a region's kernels to a pool of compilers and waits for them before it returns. While one region waits,
the next could be lowered, and a region with one kernel keeps one core busy. Here the waiting is put off until every
region has been lowered.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import CodeCacheFuture, LambdaFuture


@contextmanager
def one_wait_for_all_kernels() -> Iterator[None]:
    """Regions compiled inside must not be called before the end, when all their kernels are there.

    Only kernels that a C++ compiler makes are waited for later: those of Triton are packed into artifacts at once.

    Raises:
        Exception: what a compiler reports, at the end.
    """
    wait = AsyncCompile._wait_futures
    waiting: list[tuple[AsyncCompile, dict[str, Any]]] = []

    def put_off(self: AsyncCompile, scope: dict[str, Any]) -> None:
        if all(map(_is_of_cpp, scope.values())):
            waiting.append((self, scope))
        else:
            wait(self, scope)

    with mock.patch.object(AsyncCompile, "_wait_futures", put_off):
        yield
    for pool, scope in waiting:
        wait(pool, scope)


def _is_of_cpp(value: Any) -> bool:
    """Whether a name of a generated module is no kernel at all, or one that a C++ compiler is making."""
    if isinstance(value, LambdaFuture):
        return value.future is None
    return not isinstance(value, (Future, CodeCacheFuture))
