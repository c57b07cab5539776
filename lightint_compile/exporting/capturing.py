"""The captured program of a module, before anything is rewritten."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.fx as fx
from torch.export import Dim, ExportedProgram

from lightint_compile.capture.dry_run import Dynamic, named_dimensions
from lightint_compile.capture.foreign_tensors import is_foreign
from lightint_compile.errors import ExportError, told, user_line
from lightint_compile.passes.ir.remarks import module_path_of, source_of
from lightint_compile.torch_marks import eager_calls

Source = torch.nn.Module | ExportedProgram


def captured(source: Source, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Dynamic) -> ExportedProgram:
    """The program of a call of ``source``.

    Raises:
        ExportError: it does not trace, has no weights, or drops elements in train mode.
    """
    found = _traced(source, args, kwargs, dynamic)
    _check_dropout(found, name_of(source))
    return found


def name_of(source: Callable[..., Any] | ExportedProgram) -> str:
    """The class of a module, for errors."""
    return "program" if isinstance(source, ExportedProgram) else type(source).__name__


def _traced(source: Source, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Dynamic) -> ExportedProgram:
    if isinstance(source, ExportedProgram):
        if dynamic:
            why = "the sizes of a captured program are fixed already"
            raise ExportError("dynamic sizes cannot be added", where="dynamic", why=why, fix="pass the module itself")
        return source
    if any(tensor.is_meta for tensor in (*source.parameters(), *source.buffers())):
        raise ExportError("there are no weights to write", where=name_of(source), why="they are on the meta device")
    shapes = _dynamic_shapes(source, args, kwargs, dynamic)
    try:
        with eager_calls():
            return torch.export.export(source, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        where = user_line(error) or name_of(source)
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


def _check_dropout(found: ExportedProgram, name: str) -> None:
    """Dropout in train mode draws other numbers in every call: nothing could be compared."""
    for node in found.graph.nodes:
        if _drops(node):
            raise ExportError(
                "dropout in train mode cannot be exported",
                where=source_of(node) or name,
                why=f"{module_path_of(node) or node.name} drops other elements in every call",
                fix="call module.eval() first",
            )


def _drops(node: fx.Node) -> bool:
    if "dropout" in str(node.target):
        return node.args[-1] is True and bool(node.args[-2] != 0.0)
    attends = node.target is torch.ops.aten.scaled_dot_product_attention.default
    return attends and bool(node.kwargs.get("dropout_p", node.args[4] if len(node.args) > 4 else 0.0))


def because_random(error: ExportError, found: ExportedProgram) -> ExportError:
    """``error``, with random numbers as its reason where the program draws any."""
    drawn = [node for node in found.graph.nodes if _draws(node)]
    if not drawn:
        return error
    why = f"{error.why}; it draws random numbers ({drawn[0].target})"
    fix = "pass the random tensor in as an argument"
    return ExportError(error.what, where=source_of(drawn[0]) or error.where, why=why, fix=fix)


def because_foreign(error: ExportError, found: ExportedProgram) -> ExportError:
    """``error``, with a tensor whose class has operations of its own as its reason where the program is given one."""
    specs = zip(found.graph_signature.input_specs, found.graph.find_nodes(op="placeholder"), strict=False)
    foreign = {spec.target or node.name: value for spec, node in specs if is_foreign(value := node.meta.get("val"))}
    if not foreign:
        return error
    name, kind = next((name, type(value).__qualname__) for name, value in foreign.items())
    why = f"{error.why}; {name} is a {kind}, whose class says what operations on it do"
    fix = "export the module with plain tensors, or, for .pt2 and .aoti.pt2, define the class in a module to import"
    return ExportError(error.what, where=error.where, why=why, fix=fix)


def _draws(node: fx.Node) -> bool:
    attends = node.target is torch.ops.aten.scaled_dot_product_attention.default
    return not attends and _NONDETERMINISTIC in getattr(node.target, "tags", ())


_NONDETERMINISTIC = torch.Tag.nondeterministic_seeded
