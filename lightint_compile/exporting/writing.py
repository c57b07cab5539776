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
import torch.fx as fx
from torch.export import Dim, ExportedProgram

from lightint_compile import capture
from lightint_compile.capture.dry_run import Dynamic, named_dimensions
from lightint_compile.errors import ExportError, LightintError, told, user_line
from lightint_compile.exporting.archive import REPORT_FILE, as_exported
from lightint_compile.exporting.check import run_fresh, seeded, worst_difference
from lightint_compile.exporting.formats import check_suffix
from lightint_compile.exporting.results import RESULTS_FILE, described
from lightint_compile.modelwide import check_required
from lightint_compile.options import LightintOptions
from lightint_compile.options.pipelines import pipeline_of
from lightint_compile.passes.ir.remarks import Numerics, RemarkKind, module_path_of, source_of
from lightint_compile.pipeline_run import Rewritten, rewrite
from lightint_compile.reporting import Report

_NO_REGIONS = ("outline-regions", "distinct-rows", "adaptive-context", "step-cache")
"""An archive holds one flat graph without a driver: regions exist to be compiled once, which is the loader's business,
and which rows of an input differ is asked of the driver."""


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
    """Write the rewritten program of ``module`` to a ``.pt2`` file.

    The file is loaded and run on ``args`` in a fresh process before it takes its place; an existing file is replaced
    in one step, or not at all.

    Args:
        module: a module, or a program that ``torch.export`` made of one.
        args: positional arguments of a call, by which the module is captured and the file is checked.
        path: the file to write; its suffix names the format.
        kwargs: keyword arguments of that call.
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
        _check_dropout(captured, _name_of(module))
        rewritten = _rewritten(captured, wanted, module)
        program = as_exported(rewritten.program, captured)
        report = Report.of(rewritten)
        check_required(report.sections)
        approximate = _is_approximate(rewritten)
        original = module if isinstance(module, torch.nn.Module) else module.module()
        with seeded():
            reference = (program.module() if approximate else original)(*args, **kwargs)
    compared_with = "the rewritten graph" if approximate else "the module"
    extra = {REPORT_FILE: json.dumps(report.to_dict()), RESULTS_FILE: described(captured.call_spec.out_spec)}
    try:
        difference = _write(program, extra, path, (tuple(args), kwargs), reference)
    except ExportError as error:
        raise _because_random(error, captured) from error
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
        where = user_line(error) or _name_of(module)
        raise ExportError("torch.export cannot capture the call", where=where, why=told(error)) from error


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


def _rewritten(
    captured: ExportedProgram, options: LightintOptions, module: torch.nn.Module | ExportedProgram
) -> Rewritten:
    try:
        program = capture.from_exported(captured, name=_name_of(module))
    except Exception as error:
        where = error.where if isinstance(error, LightintError) else _name_of(module)
        fix = "call module.eval() first: it is in train mode" if getattr(module, "training", False) else ""
        raise ExportError("the program cannot be rewritten", where=where, why=told(error), fix=fix) from error
    return rewrite(program, options, leave_out=_NO_REGIONS)


def _check_dropout(captured: ExportedProgram, name: str) -> None:
    """Dropout in train mode draws other numbers in every call: nothing could be compared."""
    for node in captured.graph.nodes:
        if _drops(node):
            raise ExportError(
                "dropout in train mode cannot be exported",
                where=source_of(node) or name,
                why=f"{module_path_of(node) or node.name} drops other elements in every call",
                fix="call module.eval() first",
            )


def _drops(node: fx.Node) -> bool:
    if "dropout" in str(node.target):
        return node.args[-1] is True
    attends = node.target is torch.ops.aten.scaled_dot_product_attention.default
    return attends and bool(node.kwargs.get("dropout_p", node.args[4] if len(node.args) > 4 else 0.0))


def _because_random(error: ExportError, captured: ExportedProgram) -> ExportError:
    """``error``, with random numbers as its reason where the program draws any."""
    drawn = [node for node in captured.graph.nodes if _NONDETERMINISTIC in getattr(node.target, "tags", ())]
    if not drawn:
        return error
    why = f"{error.why}; it draws random numbers ({drawn[0].target})"
    fix = "pass the random tensor in as an argument"
    return ExportError(error.what, where=source_of(drawn[0]) or error.where, why=why, fix=fix)


_NONDETERMINISTIC = torch.Tag.nondeterministic_seeded


def _is_approximate(rewritten: Rewritten) -> bool:
    applied = [remark for remark in rewritten.remarks if remark.kind is RemarkKind.APPLIED]
    return any(remark.numerics is Numerics.APPROXIMATE for remark in applied)


def _write(program: ExportedProgram, extra: dict[str, str], path: Path, call: tuple[Any, Any], reference: Any) -> float:
    """Write to a name beside ``path``, check that file, and rename it; return the difference that was measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".lightint-") as folder:
        written = Path(folder) / path.name
        try:
            torch.export.save(program, written, extra_files=extra)
        except Exception as error:
            raise ExportError("the program cannot be written", where=path.name, why=told(error)) from error
        difference = worst_difference(run_fresh(written, call, Path(folder)), reference)
        os.replace(written, path)
    return difference


def _name_of(module: Callable[..., Any] | ExportedProgram) -> str:
    return "program" if isinstance(module, ExportedProgram) else type(module).__name__
