"""Reading an exported file: our operators are registered first, so that no import has to be remembered."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from lightint_compile.errors import ExportError
from lightint_compile.exporting.archive import REPORT_FILE
from lightint_compile.exporting.formats import check_suffix
from lightint_compile.reporting import Report


@dataclass(frozen=True)
class Loaded:
    """A program read from a file: call it like the module it came from.

    Attributes:
        program: the exported program, with its graph and weights.
        report: what was rewritten before it was written; ``None`` for an archive that is not ours.
        module: the program as a module.
    """

    program: ExportedProgram
    report: Report | None
    module: torch.nn.Module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        return self.module(*args, **kwargs)


def load(path: str | Path) -> Loaded:
    """Read a ``.pt2`` file.

    Raises:
        ExportError: there is no such file, its suffix is unknown, or it is no archive.
    """
    path = Path(path)
    check_suffix(path)
    if not path.is_file():
        raise ExportError("there is no such file", where=str(path))
    import lightint_compile.kernels.ops  # noqa: F401 - registers the operators the archive may name

    extra = {REPORT_FILE: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError("the archive cannot be read", where=str(path), why=reason, fix="export it again") from error
    report = Report.from_dict(json.loads(extra[REPORT_FILE])) if extra[REPORT_FILE] else None
    return Loaded(program, report, program.module())
