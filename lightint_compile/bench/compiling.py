"""What compiling a chunk costs: Inductor on the whole graph, lightint cold, lightint warm in a second process.

Every measurement is a fresh process with caches of its own (the warm one finds what the cold one left). Tracing by
Dynamo, which all of them share, is reported apart: ``compile`` is the first call without it. Where torch can, each
distinct block is traced once in two more rows, of which the warm one finds the trace as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightint_compile.bench.about import write
from lightint_compile.errors import InputError, StateError
from lightint_compile.models.devices import checked_device
from lightint_compile.models.registry import TINY, world_model
from lightint_compile.torch_frames import opens_frames

if TYPE_CHECKING:
    from rich.table import Table


def run(
    *,
    model: str = TINY,
    depths: Sequence[int] = (4, 16),
    inductor_up_to: int = 4,
    history: int = 24,
    device: str = "cpu",
    json_file: Path | None = None,
) -> None:
    """Run the benchmark and print its table.

    Args:
        depths: numbers of blocks.
        inductor_up_to: the deepest stack that Inductor compiles as well.
        history: latent frames before the chunk.
        device: ``cpu``, or ``cuda``.
        json_file: where the rows are written.

    Raises:
        InputError: there is no such model, or ``history`` is no whole number of its chunks.
        StateError: a measuring process failed.
        DeviceError: there is no such device.
    """
    checked_device(device)
    spec = world_model(model).spec
    if history != spec.frames(spec.chunks(history)):
        fix = f"give a multiple of {spec.chunk}" + (f" and {spec.frames(1)}" if spec.first_chunk else "")
        raise InputError("the history is no whole number of chunks", where="--history", why=f"it is {history}", fix=fix)
    rows: list[dict[str, Any]] = []
    for depth in depths:
        for group in _GROUPS if opens_frames() else _GROUPS[:-1]:
            if group == ("inductor",) and depth > inductor_up_to:
                continue
            with tempfile.TemporaryDirectory() as folder:
                rows += [_process(name, model, depth, history, folder, device) for name in group]
    print_table(model, rows)
    if json_file is not None:
        write(json_file, {"model": model, "rows": rows}, device)


BY_BLOCKS = "blocks traced once"
"""What the names of rows end in where Dynamo traces each distinct block once, and its trace is kept."""

_GROUPS = (
    ("inductor",),
    ("lightint cold", "lightint warm"),
    (f"lightint cold, {BY_BLOCKS}", f"lightint warm, {BY_BLOCKS}"),
)
"""Processes that share caches, in their order."""


def _process(name: str, model: str, depth: int, history: int, folder: str, device: str) -> dict[str, Any]:
    call = json.dumps([name, model, depth, history, device])
    caches = {"TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": f"{folder}/triton"}
    environment = {**os.environ, **caches, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", _RUN, call], capture_output=True, text=True, env=environment)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [""])[-1]
        raise StateError(f"{name} at {depth} blocks failed", where=model, why=why)
    return {"variant": name, "depth": depth, **json.loads(done.stdout.splitlines()[-1])}


_RUN = (
    "import json, sys; from lightint_compile.bench.compiling import in_this_process;"
    "print(json.dumps(in_this_process(*json.loads(sys.argv[1]))))"
)


def in_this_process(variant: str, name: str, depth: int, history: int, device: str) -> dict[str, Any]:
    """The first and a later call of one variant in this process, and the seconds Dynamo spent before its backend.

    Args:
        variant: the name of its row.
        device: ``cpu``, or ``cuda``, where weights and inputs are bfloat16.
    """
    from torch._dynamo.utils import compilation_time_metrics, counters

    from lightint_compile.compiled import CompiledGraph

    model = world_model(name).at_depth(depth)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    chunk = model.module(device, dtype)
    backend = variant.split()[0]
    more: dict[str, Any] = {"trace_blocks_once": True, "traces": True} if variant.endswith(BY_BLOCKS) else {}
    options: Any = {"options": {"preset": "exact", **more}} if backend == "lightint" else {}
    compiled = torch.compile(chunk, backend=backend, fullgraph=True, **options)

    def call(frames: int) -> float:
        inputs = model.example_inputs(frames, device, dtype)
        for argument, axis in model.frame_axes.items():
            torch._dynamo.mark_dynamic(inputs[argument], axis)
        _wait(device)
        start = time.perf_counter()
        with torch.no_grad():
            compiled(*inputs.values())
        _wait(device)
        return time.perf_counter() - start

    first = call(history)
    traced = sum(compilation_time_metrics.get("bytecode_tracing", ()))
    later = min(call(history + model.spec.chunk * n) for n in (1, 2, 3))
    graphs = CompiledGraph.of(chunk)
    drivers = [graph.driver for graph in graphs if graph.driver]
    numbers = {"trace": traced, "compile": first - traced, "later": later}
    counts = {
        "graphs": len(graphs) or counters["stats"]["unique_graphs"],
        "regions": sum(len(driver.leaves) for driver in drivers),
        "compiled": sum(driver.compilations for driver in drivers),
    }
    return {**numbers, **counts}


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def print_table(model: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print :func:`table`."""
    from rich.console import Console

    Console(width=100).print(table(model, rows))


def table(model: str, rows: Sequence[dict[str, Any]]) -> Table:
    """One row a process."""
    from rich.table import Table

    made = Table(title=f"Compiling a chunk of {model}, seconds")
    for column in ("blocks", "variant", "trace", "compile", "a later call", "graphs", "regions", "compiled"):
        made.add_column(column, justify="left" if column == "variant" else "right")
    for row in rows:
        seconds = [f"{row[name]:.2f}" for name in ("trace", "compile", "later")]
        counts = [str(row[name]) for name in ("graphs", "regions", "compiled")]
        made.add_row(str(row["depth"]), row["variant"], *seconds, *counts)
    return made
