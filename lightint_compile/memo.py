"""Results kept between calls: computed again only when a tensor they came from is another one, or was written to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lightint_compile.runtime.stamps import Marks, Stamp, marks_of

#: Results kept for each call of a region. Conditional and unconditional prompts of classifier-free guidance alternate;
#: more than a few live prompts do not occur.
SLOTS = 4


@dataclass(frozen=True)
class _Entry:
    stamp: Stamp
    result: Sequence[Any]


class Memo:
    """A region whose results are kept, guarded by the identity and version of every tensor argument.

    A tensor made under ``inference_mode`` has no version counter, so a write to it could not be seen: a call with one
    computes. Entries hold their argument tensors weakly; a dead argument never equals a live one.
    """

    def __init__(self, function: Callable[..., Sequence[Any]], calls: int = 1) -> None:
        """``calls`` is how often one run of the program calls the region: each call has results of its own to keep."""
        self.function = function
        self.slots = SLOTS * calls
        self.hits = 0
        self.misses = 0
        self._entries: dict[tuple[Marks, tuple[Any, ...]], _Entry] = {}
        self._lock = threading.Lock()

    def __call__(self, *args: Any) -> Sequence[Any]:
        """The kept result for these arguments, or a new one."""
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        call = marks_of(tensors), tuple(arg for arg in args if not isinstance(arg, torch.Tensor))
        with self._lock:
            entry = self._entries.get(call)
            if entry is not None and entry.stamp.holds(tensors):
                self.hits += 1
                return entry.result
        stamp = Stamp.of(tensors)
        if stamp is None:
            return self.function(*args)
        result = tuple(self.function(*args))
        with self._lock:
            self.misses += 1
            self._entries.pop(call, None)
            alive = [(kept, entry) for kept, entry in self._entries.items() if entry.stamp.is_alive]
            self._entries = dict([*alive[1 - self.slots :], (call, _Entry(stamp, result))])
        return result

    def reset(self) -> None:
        """Forget every result."""
        with self._lock:
            self._entries.clear()
