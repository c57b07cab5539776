"""Workers between two graphs of a program: to get one ready takes ten seconds, and often the next graph comes first."""

from __future__ import annotations

import threading
from collections.abc import Hashable

from lightint_compile.lowering.workers.pool import Workers

KEPT = 30.0
"""Seconds that workers without work are kept."""


class _Parked:
    """Workers that wait for a graph, until their time is over.

    Args:
        key: what they were started with.
    """

    def __init__(self, key: Hashable, workers: Workers) -> None:
        self.key, self.workers, self.count = key, workers, len(workers.running)
        self.timer = threading.Timer(KEPT, _end, [self])
        self.timer.daemon = True

    def close(self) -> None:
        """End them."""
        self.timer.cancel()
        self.workers.close()


_lock = threading.Lock()

_waiting: list[_Parked] = []
"""At most one; under the lock."""


def park(key: Hashable, workers: Workers) -> None:
    """Keep workers for a while. Those that were kept before are ended: two threads compiled at once."""
    if not workers.running:
        return
    parked = _Parked(key, workers)
    try:
        parked.timer.start()
    except RuntimeError:  # the system has no more threads, or the interpreter ends
        workers.close()
        return
    with _lock:
        before = list(_waiting)
        _waiting[:] = [parked]
    for each in before:
        each.close()


def taken(key: Hashable) -> Workers | None:
    """The workers that are kept, if they were started with ``key``; others are ended."""
    with _lock:
        found = _waiting.pop() if _waiting else None
    if found is None:
        return None
    found.timer.cancel()
    if found.key == key and len(found.workers.running) == found.count:
        return found.workers
    found.close()
    return None


def _end(parked: _Parked) -> None:
    with _lock:
        is_waiting = parked in _waiting
        if is_waiting:
            _waiting.remove(parked)
    if is_waiting:  # else they have work again
        parked.workers.close()
