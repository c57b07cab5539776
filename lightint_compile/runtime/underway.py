"""Whether a rollout is under way in this thread: what is compiled inside of one belongs to its trajectory."""

from __future__ import annotations

import threading


class _Underway(threading.local):
    count = 0


_underway = _Underway()


def rollout_begins() -> None:
    """A rollout of this thread is entered."""
    _underway.count += 1


def rollout_ends() -> None:
    """A rollout of this thread is left."""
    _underway.count -= 1


def rollout_is_underway() -> bool:
    """Whether this thread is between the two."""
    return _underway.count > 0
