"""The check of a written file: run it in a fresh process, and compare its outputs with what they should be.

Run as a program, this module is that fresh process: ``python -m lightint_compile.exporting.check FILE CALL OUTPUTS``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree

from lightint_compile.errors import ExportError

LIMITS = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""Relative L2 difference by which outputs of a dtype may differ: rounding in another order, through a deep model."""


def run_fresh(path: Path, call: tuple[Any, Any], folder: Path) -> list[Any]:
    """The flat outputs of the file at ``path`` for ``call`` (args, kwargs), computed by a new interpreter."""
    inputs, outputs = folder / "call.pt", folder / "outputs.pt"
    torch.save(call, inputs)
    command = [sys.executable, "-m", "lightint_compile.exporting.check", str(path), str(inputs), str(outputs)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it wrote nothing to stderr"])[-1]
        raise ExportError("the written file does not run in a fresh process", where=path.name, why=last)
    found: list[Any] = torch.load(outputs)
    return found


def worst_difference(outputs: list[Any], reference: Any) -> float:
    """The largest relative L2 difference of an output; one above its limit is an :class:`ExportError`."""
    expected = pytree.tree_leaves(reference)
    if len(outputs) != len(expected):
        raise ExportError("the written file has other outputs", why=f"{len(outputs)} instead of {len(expected)}")
    return max((_compare(index, *pair) for index, pair in enumerate(zip(outputs, expected, strict=True))), default=0.0)


def _compare(index: int, found: Any, expected: Any) -> float:
    where = f"output {index}"
    if not isinstance(expected, torch.Tensor):
        if found != expected:
            raise ExportError("the written file computes another value", where=where, why=f"{found} != {expected}")
        return 0.0
    if found.dtype != expected.dtype or found.shape != expected.shape:
        why = f"{found.dtype} {tuple(found.shape)} instead of {expected.dtype} {tuple(expected.shape)}"
        raise ExportError("the written file returns another type", where=where, why=why)
    difference, limit = relative_difference(found, expected), LIMITS.get(expected.dtype, 0.0)
    if not difference <= limit:
        why = f"relative L2 difference {difference:.2e}, allowed {limit:.0e}"
        raise ExportError("the written file computes something else", where=where, why=why)
    return difference


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """L2 norm of the difference over that of ``expected``; 0 when both agree in every element, infinities included."""
    found, expected = found.detach().cpu(), expected.detach().cpu()
    if torch.equal(found, expected):
        return 0.0
    exact = torch.complex128 if expected.is_complex() else torch.float64
    norm = expected.to(exact).norm().clamp_min(torch.finfo(torch.float64).tiny)
    return float((found.to(exact) - expected.to(exact)).norm() / norm)


def main(path: str, inputs: str, outputs: str) -> None:
    """Load the file, run it on the saved call, and save its flat outputs."""
    from lightint_compile.exporting.loading import load

    args, kwargs = torch.load(inputs)
    with torch.no_grad():
        torch.save(pytree.tree_leaves(load(path)(*args, **kwargs)), outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
