"""``lightint bench all``: part after part, each in a process of its own; then the page of what they measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from lightint_compile.bench.about import now
from lightint_compile.bench.parts.kept import Folder, Run
from lightint_compile.bench.parts.listed import PARTS, Command, Part, Scale, chosen
from lightint_compile.bench.parts.page import Outcome, path_of, write_page
from lightint_compile.bench.parts.running import call_of, machine_of, run, told_to_stop
from lightint_compile.errors import InputError, OptionError, told
from lightint_compile.models.devices import checked_device

DEVICES = ("cuda", "cpu")


@dataclass(frozen=True)
class Asked:
    """What is to be measured.

    Attributes:
        parts: names; all of them unless given.
        device: ``cuda`` or ``cpu``; CUDA where there is one.
        patience: seconds after which a part is stopped; each part's own unless given.
        again: run also what is done already.
        brief: on a GPU in minutes, see :class:`~.listed.Scale`.
    """

    out: Path
    parts: Sequence[str] = ()
    device: str | None = None
    patience: float | None = None
    again: bool = False
    brief: bool = False

    def scale(self, device: str) -> Scale:
        """How much is measured on a kind of device.

        Raises:
            OptionError: it is brief already.
        """
        if self.brief and device == "cpu":
            why = "all parts are small there already"
            raise OptionError("--brief is for a GPU", where="--brief", why=why, fix="leave it out")
        return Scale.BRIEF if self.brief else Scale(device)

    def kind(self) -> str:
        """The kind of device.

        Raises:
            DeviceError: it is not there.
            OptionError: one of several GPUs.
        """
        found = checked_device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if str(found) not in DEVICES:
            why = f"{found} is no kind of device, and a part takes the first that it sees"
            fix = f"give cuda, with CUDA_VISIBLE_DEVICES={found.index}" if found.type == "cuda" else "give cuda or cpu"
            raise OptionError(f"parts do not run on {found}", where="--device", why=why, fix=fix)
        return str(found)


def run_all(asked: Asked, console: Console | None = None) -> bool:
    """Run what is not done yet and write the page; whether all that was asked for has figures.

    Raises:
        OptionError: there is no such part, or no such kind of device.
        DeviceError: there is no such device.
        InputError: the folder cannot be made.
        StateError: device and versions cannot be told.
    """
    wanted, device = chosen(asked.parts), asked.kind()
    scale = asked.scale(device)
    _make(asked.out)
    job = Job(asked, device, scale, wanted, machine_of(device), console or Console())
    try:
        with told_to_stop():
            job.run()
    finally:
        shown = write_page(job.folder, job.outcomes(), job.machine)
        job.console.print(f"page: {path_of(job.folder)}", highlight=False, soft_wrap=True)
    return not any(each.failed for each in shown if each.outcome.part in wanted)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fix = "name a folder of yours"
        raise InputError(f"{folder} cannot be made", where="--out", why=told(error), fix=fix) from error


@dataclass
class Job:
    """The parts under way."""

    asked: Asked
    device: str
    scale: Scale
    wanted: Sequence[Part]
    machine: Mapping[str, Any]
    console: Console
    folder: Folder = field(init=False)

    def __post_init__(self) -> None:
        self.folder = Folder(self.asked.out)

    def run(self) -> None:
        """Every part that is wanted, one after the other; one that fails holds up no other."""
        columns = (TextColumn("{task.description:<12}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("{task.fields[last]}"), console=self.console) as progress:
            task = progress.add_task("", total=len(self.wanted), last="")
            for part in self.wanted:
                progress.update(task, description=part.name, last="")
                said = self._part(part, lambda line: progress.update(task, last=_short(line)))
                self._tell(progress, task, f"{part.name}: {said}")

    def _tell(self, progress: Progress, task: TaskID, said: str) -> None:
        progress.update(task, advance=1, last="")
        progress.console.print(said, highlight=False, markup=False, soft_wrap=True)

    def _part(self, part: Part, tell: Callable[[str], None]) -> str:
        """Run a part unless it is done; what became of it."""
        command = part.commands[self.scale]
        done = self.folder.fitting(part, command, self.machine)
        if done and not done.reason and self.folder.figures(part) is not None and not self.asked.again:
            return f"measured {done.date}, kept"
        self.folder.put_away(part)
        made = self._run(part, command, tell)
        self.folder.keep(part, made)
        return f"{made.seconds:.0f} s" + (f", failed: {made.reason}" if made.reason else "")

    def _run(self, part: Part, command: Command, tell: Callable[[str], None]) -> Run:
        limit = 60 * command.minutes if self.asked.patience is None else self.asked.patience
        call, log = call_of(self.folder.arguments(part, command)), self.folder.file(part, ".log")
        start = time.monotonic()
        reason = run(call, log, limit, self.device, tell)
        if not reason and self.folder.figures(part) is None:
            reason = "it wrote no figures"
        return Run(command.arguments, self.machine, now(), time.monotonic() - start, reason)

    def outcomes(self) -> list[Outcome]:
        """Of all parts there are: those that are not wanted count where they were measured before."""
        return [self._outcome(part) for part in PARTS]

    def _outcome(self, part: Part) -> Outcome:
        command = part.commands[self.scale]
        found = self.folder.fitting(part, command, self.machine)
        if found:
            return Outcome(part, command, found)
        earlier = self.folder.last(part) is not None
        missing = "its figures in the folder are of another command, device or version" if earlier else "not asked for"
        if part in self.wanted:
            missing = "stopped before it came to its end"
        return Outcome(part, command, missing=missing)


def _short(line: str, length: int = 60) -> str:
    """The start of a line, with nothing in it that the console takes for style."""
    return line[:length].replace("[", "(").replace("]", ")")
