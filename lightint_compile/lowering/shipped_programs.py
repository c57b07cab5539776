"""A folder of programs that another machine of the same kind starts with, and what it says of itself.

Each program is a record of the store (``artifact_store.py``), found by its key as ever; ``artifacts.json`` beside them
lists what else the key is made of, so that a machine on which none fits can say why.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightint_compile.errors import StateError
from lightint_compile.lowering.artifact_keys import SURROUNDINGS
from lightint_compile.lowering.artifact_store import kept_in, read_record
from lightint_compile.options.checks import SHIPPED
from lightint_compile.read_back import UnreadableError, an_object, read_back

log = logging.getLogger(__name__)

MATTERS = ("torch and Python", "devices and driver", "Triton", "our sources", "threads", "rates of the cost model")
"""What differs between machines and installations, first of all that a program depends on."""


@dataclass(frozen=True)
class Kept:
    """What a folder holds.

    Attributes:
        programs: how many graphs; those that are damaged do not count.
        regions: the compiled forms in them.
        size: bytes.
    """

    folder: Path
    programs: int
    regions: int
    size: int

    def __str__(self) -> str:
        plural = "s" * (self.programs != 1)
        return f"{self.folder}: {self.programs} program{plural} of {self.regions} regions, {self.size / 1e6:.1f} MB"


@contextmanager
def keep_artifacts(folder: Path | str) -> Iterator[None]:
    """Keep every program that is compiled inside in ``folder``, for other machines of this kind.

    There they are used by ``torch.compile(model, backend="lightint", options={"artifacts": folder})``. A machine is of
    the same kind where versions, devices, threads and the switches of torch are equal, and the model's source stands at
    the same path. Programs that were compiled before are not in it: start in a fresh process, or after
    ``torch.compiler.reset()``.

    Args:
        folder: made where it is not there; what it holds already stays.

    Raises:
        StateError: nothing that was compiled inside can be kept, or the folder cannot be written to.
    """
    target = Path(folder)
    with _written(target):
        target.mkdir(parents=True, exist_ok=True)
    with kept_in(target.absolute()):
        yield
        about = {name: repr(read()) for name, read in SURROUNDINGS.items()}
    if not kept(target).programs:
        why = "nothing was compiled inside, nothing in it is what lightint rewrites, or the folder may not be used"
        fix = "see report(compiled), and the log"
        raise StateError("no program was kept", where=str(target), why=why, fix=fix)
    with _written(target):
        (target / SHIPPED).write_text(json.dumps({"schema": 1, "surroundings": about}, indent=1), encoding="utf-8")


@contextmanager
def _written(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        fix = "give a folder that is not there yet, or one that this user may write to"
        raise StateError("the programs cannot be kept", where=str(target), why=str(error), fix=fix) from error


def kept(folder: Path) -> Kept:
    """What is in a folder, without the programs that are damaged: those are named in the log."""
    found = [each for record in sorted(folder.glob("*/record.json")) if (each := _program(record.parent)) is not None]
    return Kept(folder, len(found), sum(regions for regions, _ in found), sum(size for _, size in found))


def _program(folder: Path) -> tuple[int, int] | None:
    """Regions and bytes of one program; ``None`` where it is not what was written."""
    try:
        regions = len(read_record(folder)["leaves"])
        return regions, sum(file.stat().st_size for file in folder.iterdir())
    except (UnreadableError, OSError) as error:
        log.warning("the program %s is damaged, and is used by nobody: %s", folder, error)
        return None


def why_none_fits(folder: Path) -> str:
    """Why no program of a folder is the one that is looked for: what differs here, or that there is none."""
    try:
        there = read_back(folder / SHIPPED, _surroundings)
    except (OSError, UnreadableError) as error:
        return f"{SHIPPED} cannot be read: {error}"
    here = {name: repr(read()) for name, read in SURROUNDINGS.items()}
    names = [*MATTERS, *(name for name in here if name not in MATTERS)]
    for name in names:
        if there.get(name) != here[name]:
            return f"{name}: {_short(there.get(name, 'not known'))} there, {_short(here[name])} here"
    return "it holds none of this graph with these options"


def _surroundings(data: Any) -> dict[str, str]:
    return {name: str(value) for name, value in an_object(an_object(data)["surroundings"]).items()}


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


_LONGEST = 80
