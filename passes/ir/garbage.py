"""Graphs are built without Python's collector of cycles looking on.

Tens of thousands of nodes refer to each other, all of them alive: the collector walks them again and again and frees
nothing. It takes a third of the time of the passes on a graph of forty thousand nodes. Afterwards it looks at what was
built: were that counted as old beforehand, what the user dropped meanwhile would be as well, and stay.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()

_pauses = 0
"""How many pauses are under way, of all threads; collection was on when the first began."""


@contextmanager
def collection_paused() -> Iterator[None]:
    """No cycles are collected inside; what is not in a cycle is freed as ever. It may be nested, and decorate."""
    if not _begin():
        yield
        return
    try:
        yield
    finally:
        _end()


@contextmanager
def collection_resumed() -> Iterator[None]:
    """Cycles are collected inside though a pause is around it: where this process waits for others anyway."""
    resumed = _pauses > 0 and not gc.isenabled()
    if resumed:
        gc.enable()
    try:
        yield
    finally:
        if resumed and _pauses > 0:
            gc.disable()


def _begin() -> bool:
    """Begin a pause; whether there is one to end: who turned collection off himself gets it back off."""
    global _pauses
    with _lock:
        if not (_pauses or gc.isenabled()):
            return False
        _pauses += 1
        gc.disable()
    return True


def _end() -> None:
    global _pauses
    with _lock:
        _pauses -= 1
        if not _pauses:
            gc.enable()
