"""How many variants of one function torch compiles before it gives up and runs it eagerly.

A rollout loop calls its transformer in many ways: with text, to fill caches, with and without context, with sizes that
change. Torch's limit of 8 is for functions that recompile without end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch._dynamo

MOST = 32
"""Variants of one function while anything is accelerated."""

_lock = threading.Lock()
_before: list[int] = []
"""The limit that stood before, once for each who asks."""


def allow_variants() -> Callable[[], None]:
    """Raise the limit to :data:`MOST`, and give what undoes that; it falls when the last one undoes it."""
    config = torch._dynamo.config
    with _lock:
        _before.append(_before[0] if _before else config.recompile_limit)
        config.recompile_limit = max(config.recompile_limit, MOST)

    def undo() -> None:
        with _lock:
            limit = _before.pop()
            if not _before and config.recompile_limit == MOST:
                config.recompile_limit = limit

    return undo
