"""``lightint bench checks``: what it costs to tell whether the sources of kept results hold what they held.

The parameters of WorldPlay's text branch, which the text memo is checked against, and all parameters, which kept keys
and values are checked against, at full size with random content: how long the device and the host are at it, and what
part of a chunk that is.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightint_compile.kernels.checksum import Memory
from lightint_compile.models.devices import checked_device
from lightint_compile.models.worldplay import WorldPlayChunk, WorldPlayConfig
from lightint_compile.runtime.content_check import Check, Watch
from lightint_compile.runtime.content_sums import Checksums

from .timing import milliseconds

TEXT = ("txt", "text", "byt5", "vision")
"""Parts of the names of parameters in the text branch."""

COLUMNS = ("tensors", "GB", "device ms", "GB/s", "host ms", "check ms", "of a chunk")


def main(arguments: Sequence[str] = ()) -> None:
    """Measure and print; ``--json PATH`` also writes every figure."""
    options = _parser().parse_args(list(arguments))
    device = checked_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    config = WorldPlayConfig.hy_8b_480p() if device.type == "cuda" else WorldPlayConfig.demo()
    weights = _parameters(config, device)
    sets = {
        "text branch": [tensor for name, tensor in weights.items() if any(part in name for part in TEXT)],
        "all parameters": list(weights.values()),
    }
    figures = {name: measure(tensors, device, options.seconds) for name, tensors in sets.items()}
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    table = Table(title=f"Checks of content, {place}, torch {torch.__version__}; a chunk of {options.chunk:g} ms")
    for column in ("", *COLUMNS):
        table.add_column(column, justify="right" if column else "left")
    for name, found in figures.items():
        share = f"{found['check ms'] / options.chunk:.2%}"
        table.add_row(name, *(f"{found[column]:.4g}" for column in COLUMNS[:-1]), share)
    Console(width=options.width).print(table)
    if options.json:
        options.json.write_text(json.dumps({"device": place, "chunk ms": options.chunk, **figures}, indent=1), "utf-8")


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


def _parameters(config: WorldPlayConfig, device: torch.device) -> dict[str, Tensor]:
    with torch.device("meta"):
        named = list(WorldPlayChunk(config).named_parameters())
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return {name: torch.empty(each.shape, dtype=dtype, device=device).normal_() for name, each in named}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lightint bench checks", description=__doc__)
    parser.add_argument("--device", help="cuda or cpu; default: cuda where there is one")
    parser.add_argument("--chunk", type=float, default=600.0, help="milliseconds of a chunk, for the share")
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on one figure of the device")
    parser.add_argument("--width", type=int, default=110, help="columns of the printed table")
    parser.add_argument("--json", type=Path, help="write every figure here")
    return parser
