"""Export: capture, rewrite, write beside the target, check in a fresh process, and only then put it in place."""

from __future__ import annotations

import inspect
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from lightint_compile import capture
from lightint_compile.errors import CaptureError, ExportError
from lightint_compile.exporting.archive import REPORT_FILE, as_exported
from lightint_compile.exporting.check import run_fresh, worst_difference
from lightint_compile.exporting.formats import check_suffix
from lightint_compile.modelwide import check_required
from lightint_compile.options import LightintOptions
from lightint_compile.passes.remarks import Numerics, RemarkKind
from lightint_compile.presets import pipeline_of
from lightint_compile.reporting import Report
from lightint_compile.rewrite import Rewritten, rewrite
from lightint_compile.tracing import Dynamic, named_dimensions

_NO_REGIONS = ("outline-regions", "adaptive-context", "step-cache")
"""An archive holds one flat graph: regions exist to be compiled once, which is the loader's business."""


_NEED_DRIVER = ("adaptive-context", "step-cache")
"""Passes that put decisions into the program, which the driver of ``torch.compile`` answers and an archive cannot."""


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Attributes:
        path: where it is.
        report: what was rewritten; the same report is in the file.
        compared_with: what the file's outputs were compared with: the module, or, where a rewrite is approximate, the
            rewritten graph in this process.
        difference: largest relative L2 difference of an output, measured in a fresh process.
    """

    path: Path
    report: Report
    compared_with: str
    difference: float

    def __str__(self) -> str:
        size = self.path.stat().st_size / 2**20
        written = f"{self.path} · {size:.1f} MiB · {self.report.rewritten} rewrites"
        return f"{written} · {self.difference:.1e} from {self.compared_with}, checked in a fresh process"


def export(
    module: torch.nn.Module | ExportedProgram,
    args: Sequence[Any],
    path: str | Path,
    *,
    kwargs: Mapping[str, Any] | None = None,
    options: LightintOptions | Mapping[str, Any] | None = None,
    dynamic: Dynamic | None = None,
) -> Exported:
    """Write the rewritten program of ``module`` to ``path``; its suffix names the format (``.pt2``).

    The file is loaded and run on ``args`` in a fresh process before it takes its place; an existing file is replaced
    in one step, or not at all.

    Args:
        module: a module, or a program that ``torch.export`` made of one.
        args, kwargs: one call, by which the module is captured and the file is checked.
        options: as for ``torch.compile``; the preset ``exact`` by default, since an archive takes no decisions.
        dynamic: argument name to the dimension (or dimensions) whose size is symbolic; not for a captured program.

    Raises:
        ExportError: an unknown suffix, a module that cannot be captured, or a file whose outputs differ.
        OptionError, PassError: as for ``explain``.
    """
    path, kwargs = Path(path), dict(kwargs or {})
    check_suffix(path)
    if not isinstance(module, (torch.nn.Module, ExportedProgram)):
        fix = "wrap the function in a torch.nn.Module"
        raise ExportError("only a module or an exported program can be written", why=f"it is {module!r}", fix=fix)
    given = options if options is not None else {"preset": "exact"}
    wanted = given if isinstance(given, LightintOptions) else LightintOptions.from_mapping(given)
    _check_passes(wanted)
    with torch.no_grad():
        captured = _captured(module, tuple(args), kwargs, dynamic or {})
        rewritten = _rewritten(captured, wanted, _name_of(module))
        program = as_exported(rewritten.program, captured)
        report = Report.of(rewritten)
        check_required(report.sections)
        approximate = _is_approximate(rewritten)
        original = module if isinstance(module, torch.nn.Module) else module.module()
        reference = (program.module() if approximate else original)(*args, **kwargs)
    compared_with = "the rewritten graph" if approximate else "the module"
    difference = _write(program, report, path, (tuple(args), kwargs), reference)
    return Exported(path, report, compared_with, difference)


def _check_passes(options: LightintOptions) -> None:
    found = [step.name for step in pipeline_of(options).passes if step.name in _NEED_DRIVER]
    if found:
        raise ExportError(
            f"a .pt2 archive cannot take the decisions of {' and '.join(found)}",
            where=f"options: {options}",
            why="they are taken while a rollout runs, by the driver of torch.compile",
            fix='export with preset="exact" or preset="sparse"',
        )


def _captured(
    module: torch.nn.Module | ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Dynamic
) -> ExportedProgram:
    if isinstance(module, ExportedProgram):
        if dynamic:
            why = "the sizes of a captured program are fixed already"
            raise ExportError("dynamic sizes cannot be added", where="dynamic", why=why, fix="pass the module itself")
        return module
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        raise ExportError("there are no weights to write", where=_name_of(module), why="they are on the meta device")
    shapes = _dynamic_shapes(module, args, kwargs, dynamic)
    try:
        return torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError("torch.export cannot capture the call", where=_name_of(module), why=reason) from error


def _dynamic_shapes(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Dynamic
) -> dict[str, Any] | None:
    if not dynamic:
        return None
    axes = {name: found for name, (_, found) in named_dimensions(module, args, kwargs, dynamic).items()}
    shapes = {name: dict.fromkeys(found, Dim.DYNAMIC) for name, found in axes.items()}
    signature = inspect.signature(module.forward)
    bound = signature.bind(*args, **kwargs).arguments
    nested = {name for name in bound if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD}
    return {
        name: {key: shapes.get(key) for key in value} if name in nested else shapes.get(name)
        for name, value in bound.items()
    }


def _rewritten(captured: ExportedProgram, options: LightintOptions, name: str) -> Rewritten:
    try:
        program = capture.from_exported(captured, name=name)
    except CaptureError as error:
        raise ExportError(
            "the program cannot be rewritten", where=error.where, why=error.what, fix=error.fix
        ) from error
    return rewrite(program, options, leave_out=_NO_REGIONS)


def _is_approximate(rewritten: Rewritten) -> bool:
    applied = [remark for remark in rewritten.remarks if remark.kind is RemarkKind.APPLIED]
    return any(remark.numerics is Numerics.APPROXIMATE for remark in applied)


def _write(program: ExportedProgram, report: Report, path: Path, call: tuple[Any, Any], reference: Any) -> float:
    """Write to a name beside ``path``, check that file, and rename it; return the difference that was measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".lightint-") as folder:
        written = Path(folder) / path.name
        torch.export.save(program, written, extra_files={REPORT_FILE: json.dumps(report.to_dict())})
        difference = worst_difference(run_fresh(written, call, Path(folder)), reference)
        os.replace(written, path)
    return difference


def _name_of(module: Callable[..., Any] | ExportedProgram) -> str:
    return "program" if isinstance(module, ExportedProgram) else type(module).__name__
