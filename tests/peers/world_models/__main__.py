"""One code base under ways of running it, as a line of JSON: ``python world_models NAME CHECKOUTS WAY...``.

Ways: ``dynamo`` (the stock backend that only captures), a preset of ours by ``torch.compile``, ``accelerate:PRESET``.
Each compares all that the loop made with eager.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from case import Case
from cases import CASES
from torch import Tensor
from torch._dynamo.utils import counters

import lightint_compile
from lightint_compile.acceleration.targets import targets_of
from lightint_compile.passes.ir.remarks import Remark, RemarkKind

SMALL = {"min_tokens": 16, "tile": [1, 4, 4], "density": 0.5}
"""Options under which attention of few tokens is sparse."""


def main(name: str, checkouts: str, *ways: str) -> dict[str, dict[str, Any]]:
    """What happened, by way."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    case = CASES[name]
    torch.manual_seed(0)
    subject = case.build(Path(checkouts) / case.folder)
    wanted = _rolled(case.roll, subject)
    return {way: _run(case, subject, way, wanted) for way in ways}


def _run(case: Case, subject: Any, way: str, wanted: list[Tensor]) -> dict[str, Any]:
    counters.clear()
    torch._dynamo.reset()
    call, told, undo = _compiled(subject, way, case.memos)
    graphs: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        graphs.append(counters["stats"]["unique_graphs"])
        return result

    try:
        found, facts = _rolled(case.roll, counted), told()
    except Exception as error:  # what stops a way is one of its facts
        return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:300]}
    finally:
        undo()
    return {
        "calls": len(graphs),
        "graphs": graphs[-1],
        "breaks": sum(counters["graph_break"].values()),
        "late": graphs[-1] - graphs[(2 * len(graphs) - 1) // 3],
        "difference": max(map(_difference, found, wanted)),
        **facts,
    }


def _rolled(roll: Callable[..., list[Tensor]], call: Callable[..., Any]) -> list[Tensor]:
    with torch.no_grad():
        return roll(call)


def _compiled(
    subject: Any, way: str, memos: Sequence[str]
) -> tuple[Callable[..., Any], Callable[[], dict[str, Any]], Callable[[], None]]:
    """What to call, what tells of it afterwards, and what leaves the subject as it was."""
    pipe = getattr(subject, "pipe", subject)
    kind, _, preset = way.rpartition(":")
    options = {"delegate": "eager", **({} if preset == "exact" else SMALL)}
    if kind:
        handle = lightint_compile.accelerate(pipe, preset=preset, memos=memos, **options)
        return subject, lambda: _told(handle.report(), handle.decisions()), handle.undo
    modules = [target.module for target in targets_of(pipe)]
    given = {"backend": "eager"} if way == "dynamo" else {"backend": "lightint", "options": {"preset": way, **options}}
    for module in modules:
        module.compile(**given)

    def undo() -> None:
        for module in modules:
            module._compiled_call_impl = None

    return subject, lambda: {} if way == "dynamo" else _told(lightint_compile.report(modules[0]), []), undo


def _told(report: Any, decisions: list[Any]) -> dict[str, Any]:
    """What the report says of the model: a pass's places are those of the graph where it rewrote most."""
    rewritten: dict[str, int] = {}
    for section in report.sections:
        for each in section.passes:
            rewritten[each.name] = max(rewritten.get(each.name, 0), each.rewritten)
    remarks = [remark for section in report.sections for remark in section.remarks]
    steps = [len(set(each.reused_steps) - set(each.refused_steps)) for each in decisions]
    return {
        "untouched": sorted({section.untouched for section in report.sections if section.untouched}),
        "rewritten": {name: count for name, count in rewritten.items() if count},
        "sparse": _largest(remarks),
        "dense": sorted({remark.message for remark in remarks if _is_dense(remark)}),
        "kept": sorted({remark.message for remark in remarks if (remark.pass_name, remark.rule) == _KEPT}),
        "pools": any(_applied(each) and each.args.get("context_pool_readers") for each in remarks),
        "reused_steps": f"{sum(steps)} in {len(steps)} chunks" if any(steps) else "",
    }


_KEPT = ("hoist-invariants", "memo")


def _applied(remark: Remark) -> bool:
    return remark.kind is RemarkKind.APPLIED and remark.pass_name == "sparse-attention"


def _is_dense(remark: Remark) -> bool:
    return remark.kind is RemarkKind.MISSED and remark.pass_name == "sparse-attention"


def _largest(remarks: list[Remark]) -> str:
    """How many attentions over the most keys are sparse, and the grids of their queries and keys."""
    found = [
        (int(each.args["key_blocks"]), each.count, f"{each.args['query_grid']} over {each.args['key_grid']}")
        for each in filter(_applied, remarks)
    ]
    return f"{max(found)[1]} x {max(found)[2]}" if found else ""


def _difference(found: Tensor, wanted: Tensor) -> float:
    scale = wanted.double().abs().max().clamp_min(1e-30)
    return float((found.double() - wanted.double()).abs().max() / scale)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])) + "\n")
