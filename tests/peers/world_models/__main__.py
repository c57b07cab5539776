"""One code base under one way of running it, as one line of JSON: ``python world_models NAME CHECKOUTS WAY``.

Ways: ``eager``, ``dynamo`` (the stock backend that only captures), a preset of ours by ``torch.compile``, or
``accelerate:PRESET``. Each run compares with eager.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import CASES
from torch import Tensor, nn
from torch._dynamo.utils import counters

import lightint_compile

SPARSE = {"min_tokens": 16, "tile": [1, 4, 4], "density": 0.5}


def main(name: str, checkouts: str, way: str) -> dict[str, Any]:
    """What happened."""
    torch.set_num_threads(1)
    case = CASES[name]
    torch.manual_seed(0)
    module = case.build(Path(checkouts) / case.folder)
    wanted = _rolled(case.roll, module)
    counters.clear()
    torch._dynamo.reset()
    call, report = _compiled(module, way)
    graphs: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        graphs.append(counters["stats"]["unique_graphs"])
        return result

    found = _rolled(case.roll, counted)
    late = graphs[-1] - graphs[2 * len(graphs) // 3]
    told = report()
    return {
        "calls": len(graphs),
        "graphs": graphs[-1],
        "breaks": sum(counters["graph_break"].values()),
        "late": late,
        "difference": max(map(_difference, found, wanted)),
        "rewritten": {} if told is None else _rewritten(told),
    }


def _rolled(roll: Callable[..., list[Tensor]], call: Callable[..., Any]) -> list[Tensor]:
    with torch.no_grad():
        return roll(call)


def _compiled(module: nn.Module, way: str) -> tuple[Callable[..., Any], Callable[[], Any]]:
    if way in ("eager", "dynamo"):
        return module if way == "eager" else torch.compile(module, backend="eager"), lambda: None
    kind, _, preset = way.rpartition(":")
    options = {"delegate": "eager", **(SPARSE if preset == "sparse" else {})}
    if kind:
        handle = lightint_compile.accelerate(module, preset=preset, **options)
        return module, handle.report
    compiled = torch.compile(module, backend="lightint", options={"preset": preset, **options})
    return compiled, lambda: lightint_compile.report(compiled)


def _rewritten(report: Any) -> dict[str, int]:
    """Rewritten places by pass, of the graph where a pass rewrote most."""
    found: dict[str, int] = {}
    for section in report.sections:
        for each in section.passes:
            found[each.name] = max(found.get(each.name, 0), each.rewritten)
    return {name: count for name, count in found.items() if count}


def _difference(found: Tensor, wanted: Tensor) -> float:
    scale = wanted.double().abs().max().clamp_min(1e-30)
    return float((found.double() - wanted.double()).abs().max() / scale)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])) + "\n")
