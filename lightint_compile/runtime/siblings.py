"""Graphs of one function under one set of options, such as those for two resolutions, tell of one run of rollouts.

Each compiles for other sizes; which of them runs a chunk is no matter to the chunk after it, nor to who asks what was
decided. A graph that decides nothing at run time says that it ran, so that nobody is told of an earlier rollout.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar

from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.runtime.per_model import PerModel
from lightint_compile.runtime.planner import Planner


class Siblings:
    """What graphs of one function have in common: a planner for each policy, in each for every model."""

    _all: ClassVar[weakref.WeakValueDictionary[Hashable, Siblings]] = weakref.WeakValueDictionary()
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self._planners: dict[Policy, PerModel[Planner]] = {}

    @classmethod
    def of(cls, key: Hashable) -> Siblings:
        """Those of one key, which live as long as one of their graphs does."""
        with cls._lock:
            found = cls._all.get(key)
            if found is None:
                found = cls._all[key] = cls()
            return found

    @classmethod
    def forget_all(cls) -> None:
        """Graphs that are compiled from now on have no siblings among those before."""
        with cls._lock:
            cls._all.clear()

    def planners(self, policy: Policy, make: Callable[[], Planner]) -> PerModel[Planner]:
        """The planners of one policy."""
        with self._lock:
            return self._planners.setdefault(policy, PerModel(make))

    def ran_exactly(self, args: Sequence[Any]) -> None:
        """A graph that decides nothing ran with these arguments: what was decided before belongs to an earlier call."""
        for planners in self._planners.values():
            planner = planners.known(args)
            if planner is not None:
                planner.leave()
