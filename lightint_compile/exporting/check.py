"""The check of a written file: run it in a fresh process, and compare its outputs with what they should be.

Run as a program, this module is that fresh process: ``python -m lightint_compile.exporting.check FILE CALLS OUTPUTS``.
An ONNX model is run by ``onnx_check.py``, which imports neither PyTorch nor lightint.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree

from lightint_compile.errors import ExportError, told
from lightint_compile.exporting.torch_file import torch_file

Call = tuple[Sequence[Any], Mapping[str, Any]]
"""Positional and keyword arguments."""

LIMITS = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""Relative L2 difference by which outputs of a dtype may differ: rounding in another order, through a deep model."""


def run_fresh(path: Path, call: Call, folder: Path) -> list[Any]:
    """The flat outputs of the file at ``path`` for ``call`` (args, kwargs), computed by a new interpreter."""
    return run_each(path, [call], folder)[0]


def run_each(path: Path, calls: Sequence[Call], folder: Path) -> list[list[Any]]:
    """:func:`run_fresh` of several calls, in one new interpreter."""
    inputs, outputs = folder / "call.pt", folder / "outputs.pt"
    try:
        with torch_file(inputs) as file:
            torch.save(list(calls), file)
    except Exception as error:
        raise ExportError("the arguments cannot be written for the check", why=told(error)) from error
    _run(path, ["-m", "lightint_compile.exporting.check", str(path), str(inputs), str(outputs)])
    found: list[list[Any]] = torch.load(outputs)
    return found


def run_onnx(path: Path, calls: Sequence[Mapping[str, torch.Tensor]], folder: Path) -> list[list[torch.Tensor]]:
    """The outputs of a model for calls by name, computed by stock onnxruntime in a new interpreter."""
    inputs, outputs = folder / "calls.npz", folder / "outputs.npz"
    named = {f"{number}/{name}": value for number, call in enumerate(calls) for name, value in call.items()}
    try:
        arrays: dict[str, Any] = {f"{CODES.get(value.dtype, 0)}/{name}": _array(value) for name, value in named.items()}
        np.savez(inputs, **arrays)
    except Exception as error:
        raise ExportError("the arguments cannot be written for the check", why=told(error)) from error
    _run(path, [str(Path(__file__).with_name("onnx_check.py")), str(path), str(inputs), str(outputs)])
    every: list[dict[int, torch.Tensor]] = [{} for _ in calls]
    with np.load(outputs) as results:
        for name in results.files:
            code, call, place = map(int, name.split("/"))
            every[call][place] = _tensor(results[name], code)
    return [[each[place] for place in sorted(each)] for each in every]


CODES = {
    torch.bfloat16: 16,
    torch.float8_e4m3fn: 17,
    torch.float8_e4m3fnuz: 18,
    torch.float8_e5m2: 19,
    torch.float8_e5m2fnuz: 20,
}
"""ONNX's numbers of the dtypes that NumPy does not have; their elements go to and fro as unsigned integers."""

_BITS = {1: torch.uint8, 2: torch.uint16}


def _array(value: torch.Tensor) -> Any:
    value = value.detach().cpu()
    return (value.view(_BITS[value.itemsize]) if value.dtype in CODES else value).numpy()


def _tensor(array: Any, code: int) -> torch.Tensor:
    value = torch.from_numpy(array)
    return next((value.view(dtype) for dtype, number in CODES.items() if number == code), value)


def _run(path: Path, command: Sequence[str]) -> None:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        why = _why(done)
        fix = "convert the module to float32 first, or write a .pt2" if "NOT_IMPLEMENTED" in why else ""
        raise ExportError("the written file does not run in a fresh process", where=path.name, why=why, fix=fix)


_REASON = "lightint check: "


def _why(done: subprocess.CompletedProcess[str]) -> str:
    """What the process said: the reason it gave, else the last lines, else the signal that ended it."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    given = [line.removeprefix(_REASON) for line in lines if line.startswith(_REASON)]
    ended = f"it was ended by signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    return given[-1] if given else " · ".join([ended, *lines[-3:]])


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
    """L2 norm of the difference over that of ``expected``; 0 when both agree in every element.

    Infinities and values that are no numbers must be at the same places, and equal; the others are compared.
    """
    found, expected = found.detach().cpu(), expected.detach().cpu()
    if torch.equal(found, expected):
        return 0.0
    exact = torch.complex128 if expected.is_complex() else torch.float64
    found, expected = found.to(exact), expected.to(exact)
    odd = ~torch.isfinite(expected)
    if odd.any() or not torch.isfinite(found).all():
        same = (found == expected) | (found.isnan() & expected.isnan())
        if not torch.equal(odd, ~torch.isfinite(found)) or not same[odd].all():
            return math.inf
        found, expected = found.masked_fill(odd, 0), expected.masked_fill(odd, 0)
    norm = expected.norm().clamp_min(torch.finfo(torch.float64).tiny)
    return float((found - expected).norm() / norm)


def main(path: str, inputs: str, outputs: str) -> None:
    """Load the file, run it on the saved calls, and save the flat outputs of each."""
    from lightint_compile.exporting.loading import load

    loaded, found = load(path), []
    for args, kwargs in torch.load(inputs):
        with torch.no_grad(), seeded():
            found.append(pytree.tree_leaves(loaded.module(*args, **kwargs)))
    with torch_file(Path(outputs)) as file:
        torch.save(found, file)


@contextmanager
def seeded() -> Iterator[None]:
    """Random numbers drawn inside are the same in every process; the generators are set back afterwards."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        yield


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        sys.exit(_REASON + told(error))
