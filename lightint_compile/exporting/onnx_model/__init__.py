"""The ``.onnx`` form: regions are functions, attention is one node, operators of ours carry a body for every importer.

Translation is torch.onnx's; what is ours is which graph it is given, and what becomes of its functions.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument

from lightint_compile.errors import DeviceError, ExportError, told
from lightint_compile.exporting.onnx_model.functions import LIBRARY, arrange
from lightint_compile.exporting.onnx_model.operators import Kernels
from lightint_compile.exporting.onnx_model.outputs import name_outputs
from lightint_compile.exporting.onnx_model.translations import table
from lightint_compile.exporting.results import place_names

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 23
"""The first with attention as an operator."""

INLINE = 2**30
"""Bytes of weights up to which a model is one file; protobuf ends at twice that."""


def check_installed() -> None:
    """Raise :class:`DeviceError` unless everything that writes and checks a model is there."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        why = str(error)
        raise DeviceError("ONNX export is not installed", why=why, fix="pip install 'lightint[onnx]'") from error


def translated(
    program: ExportedProgram, kernels: Kernels, inputs: Sequence[str], metadata: Mapping[str, str]
) -> ir.Model:
    """The model of a program whose regions and operators are functions; ``inputs`` are the names of its arguments.

    Raises:
        ExportError: a dtype or an operator has no ONNX form, or no result has one.
    """
    _check_dtypes(program)
    names = _result_names(program)
    if not names:
        why = "no result is a tensor or a number"
        raise ExportError("the program has no ONNX form", where="results", why=why, fix="return a tensor")
    try:
        with _quiet(), _unconverted():
            made = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=OPSET,
                optimize=False,
                verbose=False,
                custom_translation_table=table(OPSET),
            )
    except Exception as error:
        raise ExportError("the program has no ONNX form", why=_innermost(error)) from error
    assert made is not None
    model: ir.Model = made.model
    arrange(model, kernels.found, OPSET)
    for value, name in zip(model.graph.inputs, inputs, strict=True):
        value.name = name
    _simplify(model)
    name_outputs(model.graph, names)
    model.producer_name, model.producer_version = "lightint", ""
    model.metadata_props.update(metadata)
    return model


def write(model: ir.Model, path: Path) -> list[Path]:
    """Write ``model``; the files, the model first. Weights beyond :data:`INLINE` bytes are in a second one.

    Raises:
        ExportError: the checker refuses it.
    """
    import onnx
    import onnx_ir as ir

    weights = sum(each.const_value.nbytes for each in model.graph.initializers.values() if each.const_value)
    beside = path.with_name(path.name + ".data")
    ir.save(model, path, external_data=beside.name if weights > INLINE else None)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise ExportError("the written model is not valid", where=path.name, why=told(error)) from error
    return [path, beside] if beside.exists() else [path]


def _result_names(program: ExportedProgram) -> list[str]:
    """Names of the results that a model has, in order: not of what is part of the program, such as ``None``."""
    names, specs = place_names(program.call_spec.out_spec), program.graph_signature.output_specs
    return [name for name, spec in zip(names, specs, strict=True) if not isinstance(spec.arg, ConstantArgument)]


_NO_FORM = {torch.complex32, torch.complex64, torch.complex128}


def _check_dtypes(program: ExportedProgram) -> None:
    for kind, values in (("input", _values(program)), ("weight", program.state_dict.items())):
        for name, value in values:
            if isinstance(value, torch.Tensor) and value.dtype in _NO_FORM:
                why = f"the {kind} {name} is {value.dtype}"
                fix = "pass real and imaginary parts, or write a .pt2"
                raise ExportError("a dtype has no ONNX form", where=name, why=why, fix=fix)


def _values(program: ExportedProgram) -> Iterator[tuple[str, Any]]:
    return ((node.name, node.meta.get("val")) for node in program.graph.find_nodes(op="placeholder"))


def _innermost(error: BaseException) -> str:
    """The first reason in a chain of errors; those around it describe the exporter's stages."""
    while error.__cause__ is not None:
        error = error.__cause__
    return told(error)


@contextmanager
def _unconverted() -> Iterator[None]:
    """Without a conversion between opsets, which would inline every function: nodes are made for :data:`OPSET`."""
    import onnxscript.version_converter as converter

    convert = converter.convert_version
    converter.convert_version = lambda *_, **__: None
    try:
        yield
    finally:
        converter.convert_version = convert


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes about packages that are not there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _simplify(model: ir.Model) -> None:
    """Helpers of the translator put in their place, constants folded; regions and operators stay functions."""
    import onnx_ir.passes.common as passes
    import onnxscript.optimizer

    with _quiet():
        passes.InlinePass(criteria=lambda function: function.domain.startswith(LIBRARY))(model)
        onnxscript.optimizer.fold_constants(model, onnx_shape_inference=False)
        passes.RemoveUnusedNodesPass()(model)


def described(report: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, str]:
    """Metadata of a model: the report, and what each input that is decided means."""
    return {"lightint.report": json.dumps(report), "lightint.inputs": json.dumps(inputs)}
