"""What compiling a WorldPlay chunk costs: Inductor on the whole graph, lightint cold, lightint warm in a second
process.

Every measurement is a fresh process with caches of its own (the warm one finds what the cold one left). Tracing by
Dynamo,
which all of them share, is reported apart: ``compile`` is the first call without it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.fx as fx


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark and print its table; ``lightint bench compile`` calls this."""
    options = _parser().parse_args(arguments)
    if options.child:
        print(json.dumps(_child(options.child, options.depths[0], options.history)))
        return
    rows = [row for depth in options.depths for row in _of_depth(depth, options)]
    print_table(rows)


def _of_depth(depth: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    if depth <= options.inductor_up_to:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(_process("inductor", depth, options.history, folder))
    with tempfile.TemporaryDirectory() as folder:
        rows += [_process(name, depth, options.history, folder) for name in ("lightint cold", "lightint warm")]
    return rows


def _process(name: str, depth: int, history: int, folder: str) -> dict[str, Any]:
    variant = name.split()[0]
    command = [sys.executable, "-c", _RUN, "--child", variant, "--depths", str(depth), "--history", str(history)]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return {"variant": name, "depth": depth, **json.loads(done.stdout.splitlines()[-1])}


_RUN = "import sys; from lightint_compile.bench.compiling import main; main(sys.argv[1:])"


def _child(variant: str, depth: int, history: int) -> dict[str, Any]:
    """The first and a later call of one variant in this process, and the seconds Dynamo spent before its backend."""
    from torch._dynamo import lookup_backend

    from lightint_compile.compiled import CompiledGraph
    from lightint_compile.models.worldplay import WorldPlayChunk, WorldPlayConfig, example_inputs, fill_random
    from lightint_compile.models.worldplay.rollout import mark_frames_dynamic

    config = dataclasses.replace(WorldPlayConfig.tiny(), depth=depth)
    chunk = fill_random(WorldPlayChunk(config), 0).eval().requires_grad_(False)
    entered: list[float] = []
    inner: Any = lookup_backend(variant)

    def backend(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        entered.append(time.perf_counter())
        chosen = {"options": {"preset": "exact"}} if variant == "lightint" else {}
        return inner(graph_module, inputs, **chosen)

    compiled = torch.compile(chunk, backend=backend, fullgraph=True)

    def call(frames: int) -> float:
        inputs: Any = example_inputs(config, frames)[0]
        mark_frames_dynamic(*inputs[1:5])
        start = time.perf_counter()
        with torch.no_grad():
            compiled(*inputs)
        return time.perf_counter() - start

    start = time.perf_counter()
    first = call(history)
    traced = entered[0] - start
    later = min(call(history + 4 * n) for n in (1, 2, 3))
    graphs = [graph.driver for graph in CompiledGraph.of(chunk) if graph.driver] if variant == "lightint" else []
    regions = sum(len(driver.leaves) for driver in graphs)
    numbers = {"trace": traced, "compile": first - traced, "later": later, "graphs": len(entered), "regions": regions}
    return numbers | {"compiled": sum(driver.compilations for driver in graphs)}


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """One row a process."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Compiling a WorldPlay chunk (tiny widths, 4 steps), seconds")
    for column in ("blocks", "variant", "trace", "compile", "a later call", "graphs", "regions", "compiled"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for row in rows:
        seconds = [f"{row[name]:.2f}" for name in ("trace", "compile", "later")]
        counts = [str(row[name]) for name in ("graphs", "regions", "compiled")]
        table.add_row(str(row["depth"]), row["variant"], *seconds, *counts)
    Console(width=100).print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lightint bench compile", description=__doc__)
    parser.add_argument("--depths", nargs="+", type=int, default=[4, 16])
    parser.add_argument("--inductor-up-to", type=int, default=4, help="deepest stack that Inductor compiles as well")
    parser.add_argument("--history", type=int, default=24, help="latent frames before the chunk")
    parser.add_argument("--child", default="", choices=("", "inductor", "lightint"), help=argparse.SUPPRESS)
    return parser
