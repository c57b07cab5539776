"""What is kept of a part in the folder of all: its files, and a record of the run that made them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightint_compile.bench.parts.listed import Command, Part
from lightint_compile.read_back import UnreadableError, an_object, of_type, read_back

RECORD = ".run.json"
"""Behind a part's name: the file of its record."""


@dataclass(frozen=True)
class Run:
    """One run of a part.

    Attributes:
        arguments: of ``lightint``, without the options that name files.
        machine: device and versions, by :data:`lightint_compile.bench.about.MACHINE`.
        date: when it ended.
        seconds: it took, cold start and loading included.
        reason: why it did not come to its end; empty where it did.
    """

    arguments: tuple[str, ...]
    machine: Mapping[str, Any]
    date: str
    seconds: float
    reason: str = ""


@dataclass(frozen=True)
class Folder:
    """The folder that everything is written to."""

    path: Path

    def file(self, part: Part, suffix: str) -> Path:
        """A file of a part."""
        return self.path / f"{part.name}{suffix}"

    def arguments(self, part: Part, command: Command) -> tuple[str, ...]:
        """All arguments of ``lightint``, the files of the part named."""
        named = (text for option, suffix in part.files.items() for text in (option, str(self.file(part, suffix))))
        return (*command.arguments, *named)

    def shown(self, part: Part, command: Command) -> str:
        """The command as a person calls it."""
        return shlex.join(["lightint", *self.arguments(part, command)])

    def put_away(self, part: Part) -> None:
        """Remove what an earlier run of a part wrote; what an evaluation can go on from stays."""
        for suffix in (*part.files.values(), RECORD):
            self.file(part, suffix).unlink(missing_ok=True)

    def keep(self, part: Part, run: Run) -> None:
        """Write the record of a run, behind all its files."""
        self.file(part, RECORD).write_text(json.dumps(asdict(run), indent=1) + "\n", encoding="utf-8")

    def last(self, part: Part) -> Run | None:
        """The record of the last run of a part; nothing where there is none that can be read."""
        try:
            return read_back(self.file(part, RECORD), partial(of_type, Run))
        except (OSError, UnreadableError):
            return None

    def fitting(self, part: Part, command: Command, machine: Mapping[str, Any]) -> Run | None:
        """The last run of a part, where command, device and versions are the same."""
        run = self.last(part)
        fits = run is not None and (run.arguments, run.machine) == (command.arguments, machine)
        return run if fits else None

    def figures(self, part: Part) -> dict[str, Any] | None:
        """What a part wrote, also one that was stopped; nothing where it wrote no JSON."""
        try:
            return read_back(self.file(part, ".json"), an_object)
        except (OSError, UnreadableError):
            return None
