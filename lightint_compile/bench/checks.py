"""``lightint bench checks``: what it costs to tell whether the sources of kept results hold what they held.

The parameters of a model's text branch, which the text memo is checked against, and all parameters, which kept keys and
values are checked against, at full size with random content: how long the device and the host are at it, and what part
of a chunk that is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightint_compile import capture
from lightint_compile.kernels.checksum import Memory
from lightint_compile.models.devices import checked_device
from lightint_compile.models.registry import DEMO, LARGE, world_model
from lightint_compile.models.world_model import WorldModel
from lightint_compile.passes.hoist_invariants.text_memo import text_weights
from lightint_compile.passes.ir.remarks import generic_path
from lightint_compile.runtime.content_check import Check, Watch
from lightint_compile.runtime.content_sums import Checksums

from .about import device_name, write
from .timing import milliseconds

COLUMNS = ("tensors", "GB", "device ms", "GB/s", "host ms", "check ms", "of a chunk")


def run(
    *,
    model: str | None = None,
    device: str | None = None,
    chunk: float = 600.0,
    seconds: float = 1.0,
    width: int = 110,
    json_file: Path | None = None,
) -> None:
    """Measure and print.

    Args:
        model: the model's name; the large size where there is CUDA, the small one elsewhere.
        device: ``cuda`` or ``cpu``; CUDA where there is one.
        chunk: milliseconds of a chunk, for the share.
        seconds: time spent on one figure of the device.
        width: columns of the printed table.
        json_file: where every figure is written.
    """
    place = checked_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    chosen = world_model(model or (LARGE if place.type == "cuda" else DEMO))
    weights, text = _parameters(chosen, place), _text_branch(chosen)
    sets = {
        "text branch": [tensor for name, tensor in weights.items() if generic_path(name) in text],
        "all parameters": list(weights.values()),
    }
    figures = {name: measure(tensors, place, seconds) for name, tensors in sets.items() if tensors}
    Console(width=width).print(table(figures, chunk, device_name(place)))
    if json_file:
        write(json_file, {"chunk ms": chunk, "checks": figures}, place)


def table(figures: Mapping[str, Mapping[str, float]], chunk: float, device: str) -> Table:
    """One row a set of tensors; ``chunk`` is milliseconds, for the share."""
    made = Table(title=f"Checks of content on {device}; a chunk of {chunk:g} ms")
    for column in ("", *COLUMNS):
        made.add_column(column, justify="right" if column else "left")
    for name, found in figures.items():
        share = f"{found['check ms'] / chunk:.2%}"
        made.add_row(name, *(f"{found[column]:.4g}" for column in COLUMNS[:-1]), share)
    return made


def measure(tensors: Sequence[Tensor], device: torch.device, seconds: float) -> dict[str, float]:
    """Figures of one check of ``tensors``.

    ``device ms`` is the time of the kernels alone, ``host ms`` what it takes to start them, and ``check ms`` all of a
    check from its start to the numbers on the host, with nothing else running, so that no waiting is hidden.
    """
    watch = Watch(range(len(tensors)))
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e9
    on_device = milliseconds(lambda: Checksums([Memory.of(tensors)]), device, seconds)
    host = _wall(lambda: Check(tensors, watch).waiting(), device)
    check = _wall(lambda: Check(tensors, watch).content(watch.positions), device)
    figures = dict(zip(COLUMNS, (len(tensors), size, on_device, size / on_device * 1e3, host, check), strict=False))
    return figures


def _wall(call: Callable[[], Any], device: torch.device, times: int = 15) -> float:
    """Median milliseconds of the host for ``call``, begun with an idle device; what is left of it is not waited for."""
    spent = []
    for _ in range(times):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return 1e3 * median(spent)


def _text_branch(model: WorldModel) -> set[str]:
    """Paths of parameters that what depends on the prompt alone is made from, any block's number as ``*``.

    They are found in a call of two blocks, as the text memo finds them.
    """
    small = model.at_depth(min(model.depth, 2))
    inputs = small.example_inputs(small.example_history, "meta")
    with torch.no_grad():
        program = capture.trace(small.module("meta"), tuple(inputs.values()))
    program.roles.update(model.roles)
    return set(map(generic_path, text_weights(program)))


def _parameters(model: WorldModel, device: torch.device) -> dict[str, Tensor]:
    named = list(model.module("meta").named_parameters())
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return {name: torch.empty(each.shape, dtype=dtype, device=device).normal_() for name, each in named}
