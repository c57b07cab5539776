"""What compiling a chunk costs: Inductor on the whole graph, lightint cold, lightint warm in a second process.

Every measurement is a fresh process with caches of its own (the warm one finds what the cold one left). Tracing by
Dynamo, which all of them share, is reported apart: ``compile`` is the first call without it.
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
import torch.fx as fx

from lightint_compile.bench.about import write
from lightint_compile.errors import InputError, StateError
from lightint_compile.models.registry import TINY, world_model

if TYPE_CHECKING:
    from rich.table import Table


def run(
    *,
    model: str = TINY,
    depths: Sequence[int] = (4, 16),
    inductor_up_to: int = 4,
    history: int = 24,
    json_file: Path | None = None,
) -> None:
    """Run the benchmark and print its table.

    Args:
        depths: numbers of blocks.
        inductor_up_to: the deepest stack that Inductor compiles as well.
        history: latent frames before the chunk.
        json_file: where the rows are written.

    Raises:
        InputError: there is no such model, or ``history`` is no whole number of its chunks.
        StateError: a measuring process failed.
    """
    spec = world_model(model).spec
    if history != spec.frames(spec.chunks(history)):
        fix = f"give a multiple of {spec.chunk}" + (f" and {spec.frames(1)}" if spec.first_chunk else "")
        raise InputError("the history is no whole number of chunks", where="--history", why=f"it is {history}", fix=fix)
    rows: list[dict[str, Any]] = []
    for depth in depths:
        if depth <= inductor_up_to:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(_process("inductor", model, depth, history, folder))
        with tempfile.TemporaryDirectory() as folder:
            rows += [_process(name, model, depth, history, folder) for name in ("lightint cold", "lightint warm")]
    print_table(model, rows)
    if json_file is not None:
        write(json_file, {"model": model, "rows": rows}, "cpu")


def _process(name: str, model: str, depth: int, history: int, folder: str) -> dict[str, Any]:
    call = json.dumps([name.split()[0], model, depth, history])
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", _RUN, call], capture_output=True, text=True, env=environment)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [""])[-1]
        raise StateError(f"{name} at {depth} blocks failed", where=model, why=why)
    return {"variant": name, "depth": depth, **json.loads(done.stdout.splitlines()[-1])}


_RUN = (
    "import json, sys; from lightint_compile.bench.compiling import in_this_process;"
    "print(json.dumps(in_this_process(*json.loads(sys.argv[1]))))"
)


def in_this_process(variant: str, name: str, depth: int, history: int) -> dict[str, Any]:
    """The first and a later call of one variant in this process, and the seconds Dynamo spent before its backend."""
    from torch._dynamo import lookup_backend

    from lightint_compile.compiled import CompiledGraph

    model = world_model(name).at_depth(depth)
    chunk = model.module()
    entered: list[float] = []
    inner: Any = lookup_backend(variant)

    def backend(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        entered.append(time.perf_counter())
        chosen = {"options": {"preset": "exact"}} if variant == "lightint" else {}
        return inner(graph_module, inputs, **chosen)

    compiled = torch.compile(chunk, backend=backend, fullgraph=True)

    def call(frames: int) -> float:
        inputs = model.example_inputs(frames)
        for argument, axis in model.frame_axes.items():
            torch._dynamo.mark_dynamic(inputs[argument], axis)
        start = time.perf_counter()
        with torch.no_grad():
            compiled(*inputs.values())
        return time.perf_counter() - start

    start = time.perf_counter()
    first = call(history)
    traced = entered[0] - start
    later = min(call(history + model.spec.chunk * n) for n in (1, 2, 3))
    graphs = [graph.driver for graph in CompiledGraph.of(chunk) if graph.driver] if variant == "lightint" else []
    regions = sum(len(driver.leaves) for driver in graphs)
    numbers = {"trace": traced, "compile": first - traced, "later": later, "graphs": len(entered), "regions": regions}
    return numbers | {"compiled": sum(driver.compilations for driver in graphs)}


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
