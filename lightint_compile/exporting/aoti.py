"""The ``.aoti.pt2`` form: an AOTInductor package, which Python and C++ load and run without tracing anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sympy
import torch
import torch.fx as fx
from torch.export import ExportedProgram

from lightint_compile.errors import ExportError
from lightint_compile.exporting.branch_operands import keep_strides
from lightint_compile.exporting.graph_form import is_ours
from lightint_compile.exporting.torch_file import torch_file
from lightint_compile.overwritten_reads import settings as reads_first
from lightint_compile.torch_compat import plans_memory_of_branches, solves_sizes_in_integers

METADATA = "lightint"
"""The key of our data in a package's metadata."""

_BRANCHES = {} if plans_memory_of_branches() else {"allow_buffer_reuse": False}
"""Settings of programs with branches."""


def write(program: ExportedProgram, metadata: Mapping[str, str], path: Path) -> None:
    """Compile ``program`` and write the package.

    Operators of ours become portable Triton kernels on CUDA, and ATen operators elsewhere: C++ has no Python to call.
    """
    settings: dict[str, Any] = {"aot_inductor.metadata": dict(metadata), **reads_first()}
    if _has_ours(program.graph_module):
        program = program.run_decompositions(_table(program))
    if keep_strides(program.graph_module):
        settings |= _BRANCHES
    with torch_file(path) as file:
        torch._inductor.aoti_compile_and_package(program, package_path=file, inductor_configs=settings)


def check_sizes(program: ExportedProgram) -> None:
    """Of a size such as ``35*n + 5`` older versions of AOTInductor solve for ``n`` in floating point: 250 gives 6.

    Raises:
        ExportError: a size of an input is a multiple of a number that no other size is.
    """
    if solves_sizes_in_integers():
        return
    sizes: list[tuple[str, int, sympy.Expr]] = []
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        shape: Any = value.shape if isinstance(value, torch.Tensor) else ()
        sizes += [(node.name, axis, size.node.expr) for axis, size in enumerate(shape) if hasattr(size, "node")]
    told = {expression for _, _, expression in sizes if expression.is_Symbol}
    for name, axis, expression in sizes:
        for symbol in expression.free_symbols - told:
            if abs(expression.coeff(symbol)) != 1:
                raise ExportError(
                    "a size cannot be found out in a package",
                    where=f"dimension {axis} of {name}",
                    why=f"it is {expression}, from which AOTInductor computes {symbol} with rounding errors",
                    fix=f"give the module an input that has {symbol} itself as a size",
                )


def _table(program: ExportedProgram) -> dict[torch._ops.OperatorBase, object]:
    values = [node.meta.get("val") for node in program.graph.find_nodes(op="placeholder")]
    if any(isinstance(value, torch.Tensor) and value.is_cuda for value in values):
        from lightint_compile.kernels.decompositions import portable_table

        return dict(portable_table())
    from lightint_compile.kernels.aten_form import aten_table

    return dict(aten_table())


def _has_ours(module: torch.nn.Module) -> bool:
    return any(
        is_ours(node) for each in module.modules() if isinstance(each, fx.GraphModule) for node in each.graph.nodes
    )
