"""What writes each format, from one prepared program."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from lightint_compile.errors import ExportError, told
from lightint_compile.exporting import aoti, onnx_model
from lightint_compile.exporting.archive import REPORT_FILE
from lightint_compile.exporting.calls import Call
from lightint_compile.exporting.formats import AOTI, ONNX, PT2, Format
from lightint_compile.exporting.graph_form import unshare_operands, with_functions, with_tensor_results
from lightint_compile.exporting.onnx_model.operators import Kernels
from lightint_compile.exporting.prepared import Prepared
from lightint_compile.exporting.results import RESULTS_FILE, described
from lightint_compile.exporting.torch_file import torch_file


def _nothing() -> None:
    """PyTorch writes it alone."""


@dataclass(frozen=True)
class Writer:
    """Writes one format.

    Attributes:
        write: writes the program, by an example call, to a path; gives the files, the named one first.
        check_installed: raises DeviceError unless all that is needed is installed.
    """

    write: Callable[[Prepared, Call, Path], list[Path]]
    check_installed: Callable[[], None] = _nothing


def _pt2(prepared: Prepared, example: Call, path: Path) -> list[Path]:
    extra = {REPORT_FILE: json.dumps(prepared.report.to_dict()), RESULTS_FILE: _results(prepared)}
    program = prepared.program(prepared.flat_graph(), example)
    try:
        with torch_file(path) as file:
            torch.export.save(program, file, extra_files=extra)
    except Exception as error:
        raise _unwritten(path, error) from error
    return [path]


def _aoti(prepared: Prepared, example: Call, path: Path) -> list[Path]:
    data = {
        "report": json.dumps(prepared.report.to_dict()),
        "results": _results(prepared),
        "constants": prepared.constants(),
    }
    program = prepared.program(unshare_operands(prepared.flat_graph()), example)
    aoti.check_sizes(program)
    try:
        aoti.write(program, {aoti.METADATA: json.dumps(data)}, path)
    except Exception as error:
        raise _unwritten(path, error) from error
    return [path]


def _onnx(prepared: Prepared, example: Call, path: Path) -> list[Path]:
    graph, kernels = with_functions(prepared.opened.program.graph_module), Kernels()
    graph = with_tensor_results(unshare_operands(graph))
    kernels.write_into(graph)
    metadata = onnx_model.described(prepared.report.to_dict(), prepared.inputs)
    model = onnx_model.translated(prepared.program(graph, example), kernels, prepared.input_names, metadata)
    try:
        return onnx_model.write(model, path)
    except OSError as error:
        raise _unwritten(path, error) from error


def _results(prepared: Prepared) -> str:
    """The classes of the results; a program that decides has them inside of a plain dictionary."""
    return "" if prepared.opened.outputs else described(prepared.captured.call_spec.out_spec)


def _unwritten(path: Path, error: Exception) -> ExportError:
    return ExportError("the program cannot be written", where=path.name, why=told(error))


WRITERS: Mapping[Format, Writer] = {
    PT2: Writer(_pt2),
    AOTI: Writer(_aoti),
    ONNX: Writer(_onnx, onnx_model.check_installed),
}
