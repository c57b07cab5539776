"""What calibration measured, setting by setting, the choice that a budget makes of it, and its form on disk."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightint_compile.error_budget.rollout_spread import limit
from lightint_compile.options.error_limits import MARGIN, Budget, Deviation
from lightint_compile.read_back import UnreadableError, a_number, of_type, read_back

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """One setting in all calibrations so far.

    Attributes:
        setting: the setting as text.
        deviation: the worst of all calls.
        calls: how many were measured; 0 for a setting that was never tried.
        complete: whether a rollout was measured to its end; otherwise the deviation may be larger than what was seen.
        acts: the setting with those of its passes alone that rewrite something; empty where that is not known.
        rollouts: the worst of each rollout that was measured to its end, each of them once.
    """

    setting: str
    deviation: Deviation = field(default_factory=Deviation)
    calls: int = 0
    complete: bool = True
    acts: str = ""
    rollouts: tuple[Deviation, ...] = ()

    @property
    def spread(self) -> Deviation | None:
        """What other rollouts stay within, see :mod:`.rollout_spread`; ``None`` where too few were measured."""
        return limit(self.rollouts)

    @property
    def counted(self) -> Deviation:
        """What must fit a budget with :data:`MARGIN`: the worst that was seen, and :attr:`spread` without a margin."""
        spread = self.spread
        return self.deviation if spread is None else self.deviation.worst(spread.within_margin)

    @property
    def text(self) -> str:
        """The setting as reports print it: passes that find nothing to rewrite are left out."""
        return self.acts or self.setting

    def seen(self, deviation: Deviation, rollout: int) -> Measured:
        """After one more call, of the rollout with this number; they come in order."""
        before = self.rollouts[rollout : rollout + 1]
        worst = deviation.worst(before[0]) if before else deviation
        rollouts = (*self.rollouts[:rollout], worst, *self.rollouts[rollout + 1 :])
        deviation = self.deviation.worst(deviation)
        return dataclasses.replace(self, deviation=deviation, calls=self.calls + 1, rollouts=rollouts)

    def given_up(self) -> Measured:
        """After a rollout in which the setting was not measured to the end."""
        return dataclasses.replace(self, complete=False, rollouts=self.rollouts[:-1])

    def joined(self, other: Measured) -> Measured:
        """Two calibrations as one: the worse of both. A rollout that is in both to the last bit is one."""
        acts = self.acts or other.acts
        if not self.calls or not other.calls:
            return dataclasses.replace(self if self.calls else other, acts=acts)
        worst = self.deviation.worst(other.deviation)
        rollouts = tuple(dict.fromkeys((*self.rollouts, *other.rollouts)))
        calls, complete = self.calls + other.calls, self.complete or other.complete
        return Measured(self.setting, worst, calls, complete, acts, rollouts)

    def __str__(self) -> str:
        if not self.calls:
            return f"{self.text}: not tried"
        if not self.complete:
            return f"{self.text}: {self.deviation}, given up after {self.calls} calls"
        others = "" if self.spread is None else f"; other rollouts: {self.spread}"
        return f"{self.text}: {self.deviation}{others}"


@dataclass(frozen=True)
class Table:
    """The settings of a ladder, from exact to fast, with what was measured of each.

    Attributes:
        rows: one for each setting after ``exact``, in the ladder's order.
    """

    rows: tuple[Measured, ...]

    @classmethod
    def of(cls, settings: Sequence[object]) -> Table:
        """A table without measurements; the first of ``settings`` is ``exact``."""
        return cls(tuple(Measured(str(setting)) for setting in settings[1:]))

    def choice(self, budget: Budget, margin: float = MARGIN) -> int:
        """The last setting up to which all that counts fits the budget: 0 is ``exact``, k is row k - 1.

        A setting that was given up counts as one that does not fit. Of two budgets, the larger never chooses less.
        """
        for number, row in enumerate(self.rows):
            if not row.calls or not row.complete or not budget.allows(row.counted, margin):
                return number
        return len(self.rows)

    def may_allow_more(self, budget: Budget) -> bool:
        """Whether the setting after the chosen one fits as far as it was measured, but was not measured to the end."""
        behind = self.rows[self.choice(budget) :][:1]
        return any(not row.complete and budget.allows(row.counted, MARGIN) for row in behind)

    def replaced(self, rung: int, row: Measured) -> Table:
        """With another row for setting ``rung``, from 1."""
        return Table((*self.rows[: rung - 1], row, *self.rows[rung:]))

    def joined(self, other: Table | None) -> Table:
        """With the measurements of another calibration of the same ladder."""
        if other is None or [row.setting for row in other.rows] != [row.setting for row in self.rows]:
            return self
        return Table(tuple(one.joined(two) for one, two in zip(self.rows, other.rows, strict=True)))

    def told(self, texts: Sequence[str]) -> Table:
        """With what each setting amounts to, as text."""
        return Table(tuple(dataclasses.replace(row, acts=text) for row, text in zip(self.rows, texts, strict=True)))

    def smallest(self) -> Measured | None:
        """The first setting that changes results: what is reachable at least. ``None`` where none does."""
        return next((row for row in self.rows if row.deviation.relative > 0), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data; :meth:`from_dict` takes it back. What is infinite is ``null``."""
        return {"schema": 1, "rows": [_plain(row) for row in self.rows]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Table:
        """The inverse of :meth:`to_dict`.

        Raises:
            Exception: ``data`` is of another form; :func:`load` reads what may be.
        """
        return cls(tuple(_row(row) for row in data["rows"]))


def _plain(row: Measured) -> dict[str, Any]:
    own = {"setting": row.setting, "acts": row.acts, "calls": row.calls, "complete": row.complete}
    return {**own, **_numbers(row.deviation), "rollouts": [_numbers(each) for each in row.rollouts]}


def _numbers(deviation: Deviation) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in vars(deviation).items()}


def _row(data: Mapping[str, Any]) -> Measured:
    numbers = {"relative", "psnr"}
    own = of_type(Measured, {name: value for name, value in data.items() if name not in numbers | {"rollouts"}})
    rollouts = tuple(map(_deviation, data.get("rollouts", ())))
    return dataclasses.replace(own, deviation=_deviation(data), rollouts=rollouts)


def _deviation(data: Mapping[str, Any]) -> Deviation:
    relative = math.inf if data["relative"] is None else a_number(data["relative"])
    without_peak = -math.inf if relative == math.inf else math.inf
    return Deviation(relative, without_peak if data["psnr"] is None else a_number(data["psnr"]))


def save(table: Table, path: Path) -> None:
    """Write a table, joined with the one on disk, in one step. A disk that takes no file is only logged."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as staging:
            staging.write(json.dumps(table.joined(load(path)).to_dict(), indent=1))
        os.replace(staging.name, path)
    except OSError as error:
        log.warning("the calibration is not kept on disk: %s", error)


def load(path: Path) -> Table | None:
    """The table in a file; ``None`` where there is none that can be read."""
    try:
        return read_back(path, Table.from_dict)
    except FileNotFoundError:
        return None
    except UnreadableError as error:
        log.warning("the calibration %s cannot be read: %s", path.name, error)
        return None
