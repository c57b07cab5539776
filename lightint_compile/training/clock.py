"""How long a phase may take: in minutes or in steps, over several sessions, the same for every process."""

from __future__ import annotations

import time
from dataclasses import dataclass

from lightint_compile.training.ranks import Ranks

_EVERY = 4
"""Steps between looks at the clock."""


@dataclass(frozen=True)
class Limit:
    """The end of a phase: `steps` where there are any, else `seconds`."""

    seconds: float
    steps: int | None = None

    @property
    def takes_time(self) -> bool:
        """Whether there is anything to do before it."""
        return bool(self.seconds if self.steps is None else self.steps)


class Session:
    """One run of the command, which may end before the training does."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    @property
    def is_over(self) -> bool:
        """Whether the training has to be written down and left."""
        return self._end is not None and time.monotonic() > self._end


class PhaseClock:
    """Counts the steps and seconds of a phase; `steps` and `seconds` are those of earlier sessions."""

    def __init__(self, limit: Limit, session: Session, ranks: Ranks, steps: int = 0, seconds: float = 0.0) -> None:
        self._limit, self._session, self._ranks = limit, session, ranks
        self.steps, self._before, self._begin = steps, seconds, time.monotonic()
        self._known, self._stopped = seconds, False

    @property
    def seconds(self) -> float:
        """Seconds of the phase so far, as the first process counts them."""
        return self._known

    @property
    def fraction(self) -> float:
        """How much of the phase is done, in [0, 1]."""
        done = (
            self._known / max(self._limit.seconds, 1e-9)
            if self._limit.steps is None
            else self.steps / self._limit.steps
        )
        return min(1.0, done)

    @property
    def is_done(self) -> bool:
        """Whether the phase has reached its end."""
        return self.fraction >= 1.0

    def goes_on(self) -> bool:
        """Whether another step is to be made; every process answers the same."""
        if (self.steps % _EVERY == 0 or self._limit.steps is not None) and not self._stopped:
            seconds = self._before + time.monotonic() - self._begin
            self._known, stopped = self._ranks.of_first(seconds, float(self._session.is_over))
            self._stopped = stopped > 0
        return not self._stopped and not self.is_done

    def count(self) -> None:
        """A step was made."""
        self.steps += 1
