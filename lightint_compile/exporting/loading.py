"""Reading an exported file: our operators are registered first, so the caller need not import them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind

from lightint_compile.errors import ExportError, InputError, told
from lightint_compile.exporting.archive import REPORT_FILE
from lightint_compile.exporting.formats import check_suffix
from lightint_compile.exporting.results import RESULTS_FILE, restored
from lightint_compile.reporting import Report


@dataclass(frozen=True)
class Loaded:
    """A program read from a file: call it like the module it came from.

    Attributes:
        program: the exported program, with its graph and weights.
        report: what was rewritten; ``None`` for an archive that ``torch.export.save`` wrote.
        module: the program as a module; its results are plain containers.
        results: the classes of its results; ``None`` where all are plain, or their package is not installed.
    """

    program: ExportedProgram
    report: Report | None
    module: torch.nn.Module
    results: pytree.TreeSpec | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program.

        Raises:
            InputError: the call has another form than the one that was exported, or another value for a number, text
                or truth value: these are part of the program.
        """
        check_call(self.program, args, kwargs)
        result = self.module(*args, **kwargs)
        return result if self.results is None else pytree.tree_unflatten(pytree.tree_leaves(result), self.results)


def check_call(program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Whether a call is of the form, and has the constants, that a program was exported with.

    Raises:
        InputError: it has not.
    """
    spec = program.call_spec.in_spec
    expected, named = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    if len(args) != len(expected) or set(kwargs) != set(named):
        raise InputError(
            "the call has another form than the one that was exported",
            where="load(path)(...)",
            why=f"it has {_form(args, kwargs)}; exported were {_form(expected, named)}",
            fix="call it in the same way, or export that call",
        )
    leaves = pytree.tree_leaves((args, {name: kwargs[name] for name in named}))
    inputs = [entry for entry in program.graph_signature.input_specs if entry.kind is InputKind.USER_INPUT]
    for entry, value in zip(inputs, leaves, strict=False):
        if isinstance(entry.arg, ConstantArgument) and not _is_same(value, entry.arg.value):
            raise InputError(
                f"the program was exported for {entry.arg.name}={entry.arg.value!r}",
                where=entry.arg.name,
                why=f"it was called with {value!r}, and such values are part of the program",
                fix="export a file for each value, or make it a tensor",
            )


def _form(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    positional = f"{len(args)} positional argument{'' if len(args) == 1 else 's'}"
    return f"{positional} and {', '.join(sorted(kwargs)) or 'nothing'} by name"


def _is_same(value: Any, constant: Any) -> bool:
    if type(value) is not type(constant):
        return False
    return bool(value == constant) or (value != value and constant != constant)


def load(path: str | Path) -> Loaded:
    """Read a ``.pt2`` file that :func:`lightint_compile.export` or ``torch.export.save`` wrote.

    Args:
        path: the file.

    Returns:
        The program, to be called like the module that it came from.

    Raises:
        ExportError: there is no such file, its suffix is unknown, or it is no archive.
    """
    path = Path(path)
    check_suffix(path)
    if not path.is_file():
        raise ExportError("there is no such file", where=str(path))
    import lightint_compile.kernels.ops  # noqa: F401 - registers the operators the archive may name

    extra = {REPORT_FILE: "", RESULTS_FILE: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:
        why = told(error)
        raise ExportError("the archive cannot be read", where=str(path), why=why, fix="export it again") from error
    report = Report.from_dict(json.loads(extra[REPORT_FILE])) if extra[REPORT_FILE] else None
    return Loaded(program, report, program.module(), restored(extra[RESULTS_FILE]))
