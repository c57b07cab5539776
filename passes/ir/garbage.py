"""Graphs are built without Python's collector of cycles looking on.

Tens of thousands of nodes refer to each other, all of them alive: the collector walks them again and again and frees
nothing. It takes a third of the time of the passes on a graph of forty thousand nodes. Afterwards it looks at what was
built: were that counted as old beforehand, what the user dropped meanwhile would be as well, and stay.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """No cycles are collected inside; what is not in a cycle is freed as ever. It may be nested, and decorate."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
