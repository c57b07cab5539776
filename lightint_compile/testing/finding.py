"""What a generated case shows to be wrong, and the simplest case that shows it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar


class Case(Protocol):
    """A generated case: plain data that can be written down and made simpler."""

    @property
    def seed(self) -> int:
        """What it was drawn from."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""

    def simpler(self) -> Iterable[Self]:
        """Cases that are a little simpler."""


C = TypeVar("C", bound=Case)


@dataclass(frozen=True)
class Finding(Generic[C]):
    """What is wrong with one generated case."""

    case: C
    check: str
    detail: str

    def __str__(self) -> str:
        return f"{self.check}: {self.detail}\n  {json.dumps(self.case.to_dict())}"


def shrunk(finding: Finding[C], still_fails: Callable[[C], Finding[C] | None]) -> Finding[C]:
    """The simplest case reached by making it simpler bit by bit while ``still_fails`` finds something."""
    smaller = True
    while smaller:
        smaller = False
        for case in finding.case.simpler():
            found = still_fails(case)
            if found is not None:
                finding, smaller = found, True
                break
    return finding


def save(finding: Finding[C], folder: Path) -> Path:
    """Write a finding as a regression that the test suite replays; the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{finding.check.replace(' ', '-')}-{finding.case.seed}.json"
    path.write_text(json.dumps({"case": finding.case.to_dict(), "found": finding.detail}, indent=2) + "\n")
    return path
