"""What a root graph runs, from top to bottom: the decision of a chunk, the prefill, each step with its branch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby

import torch
import torch.fx as fx

from lightint_compile.passes.ir.decision_points import (
    KeepPoint,
    PlanPoint,
    PointSpec,
    PredictedPoint,
    RowsPoint,
    StepPoint,
    VisitPoint,
    is_outlined,
    point_of,
)
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.passes.ir.node_queries import MEMO, graph_of
from lightint_compile.passes.ir.remarks import generic_path
from lightint_compile.passes.step_cache.per_element import EACH

_PHASE = re.compile(r"^(step_\d+|prefill)(?:_|$)")

BETWEEN = "between"
"""The phase of calls that belong to no step and no block."""

ONCE = "once"
"""The phase of results that are kept between calls."""

LONGEST = 6
"""Calls of the longest cycle that is told once: ``53 x (recall, recall, block_0, keep, keep)``."""

Line = tuple[str, str]
"""A phase of the chunk, and what it does."""


def rundown(root: fx.GraphModule) -> tuple[Line, ...]:
    """One line a phase, in the order in which they run, then one a region; empty where less than two calls are made."""
    if not is_outlined(root, root.graph):
        return ()
    calls = [(_phase(root, node), _said(root, node)) for node in root.graph.nodes]
    if sum(bool(said) for _, said in calls) < 2:
        return ()
    spoken = _settled(_once_first([(phase, said) for phase, said in calls if said]))
    phases = [(phase, _joined(said for _, said in each)) for phase, each in groupby(spoken, key=lambda call: call[0])]
    return (*phases, *_regions(root))


def phases_of(root: fx.GraphModule) -> dict[fx.Node, str]:
    """The phase of every node of a root, and of its branches: those of the branch; none of a graph in one piece."""
    if not is_outlined(root, root.graph):
        return {}
    calls = _settled([(_phase(root, node), node.name) for node in root.graph.nodes])
    found = {node: phase for node, (phase, _) in zip(root.graph.nodes, calls, strict=True)}
    for node in root.graph.nodes:
        for side in filter(None, map(graph_of, node.all_input_nodes)):
            found.update(dict.fromkeys(side.graph.nodes, found[node]))
    return found


def _once_first(calls: list[Line]) -> list[Line]:
    """Kept results are between the blocks that read them; they are listed at the first of them."""
    first = next((place for place, (phase, _) in enumerate(calls) if phase == ONCE), 0)
    once = [call for call in calls if call[0] == ONCE]
    return [*calls[:first], *once, *(call for call in calls[first:] if call[0] != ONCE)]


def _settled(calls: list[Line]) -> list[Line]:
    """Calls between two calls of one phase belong to it."""
    settled = list(calls)
    for place, (phase, said) in enumerate(calls):
        if phase == BETWEEN:
            following = next((later for later, _ in calls[place:] if later != BETWEEN), "")
            if settled[place - 1][0] == following:
                settled[place] = (following, said)
    return settled


def _phase(root: fx.GraphModule, node: fx.Node) -> str:
    if isinstance(point_of(root, node), (PlanPoint, VisitPoint)):
        return "decide"
    if node.meta.get(MEMO):
        return ONCE
    found = _PHASE.match(node.name)
    if found is None and any(_is_choice(root, source) for source in node.all_input_nodes):
        return "context"
    return found[1].replace("_", " ") if found else BETWEEN


def _is_choice(root: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node holds the chosen frames: an element of the plan's result."""
    return any(isinstance(point_of(root, source), PlanPoint) for source in node.all_input_nodes)


def _said(root: fx.GraphModule, node: fx.Node) -> str:
    """What a node of the root does, empty for sizes, views and elements."""
    if node.target in (torch.ops.higher_order.cond, EACH):
        return _branch(root, node)
    if node.op != "call_module":
        return ""
    spec = point_of(root, node)
    if spec is None:
        return str(node.target)
    return "" if isinstance(spec, (StepPoint, PredictedPoint)) else _decision(spec, node)


def _decision(spec: PointSpec, node: fx.Node) -> str:
    if isinstance(spec, RowsPoint):
        return f"which rows of {' and '.join(source.name for source in node.all_input_nodes)} differ"
    if isinstance(spec, VisitPoint):
        return f"which step of a loop outside this is, by the {spec.policy.rules} rules, from {node.args[2]}"
    if not isinstance(spec, PlanPoint):
        return "keep" if isinstance(spec, KeepPoint) else "recall"
    read = " and ".join(source.name for source in node.all_input_nodes[:2])
    return f"{_decided(spec.policy)}, by the {spec.policy.rules} rules, from {read}"


def _decided(policy: Policy) -> str:
    steps = f"reuse of steps {', '.join(map(str, policy.steps))}" if policy.steps else ""
    return " and ".join(part for part in ("context frames" if policy.adapt_context else "", steps) if part) or "nothing"


def _branch(root: fx.GraphModule, node: fx.Node) -> str:
    asked, reuse, compute = node.args[:3]
    assert isinstance(asked, fx.Node) and isinstance(reuse, fx.Node) and isinstance(compute, fx.Node)
    spec = next(filter(None, (point_of(root, each) for each in (asked, *asked.all_input_nodes))), None)
    drift = spec.drift if isinstance(spec, (StepPoint, VisitPoint)) else None
    check = "" if drift is None else f" and the first block drifted by at most {drift:g}"
    sides = [_side(root, str(side.target)) for side in (reuse, compute)]
    each = "each element of the batch: " if node.target is EACH else ""
    return f"[{each}if reused{check}: {sides[0] or 'an earlier prediction'}; else: {sides[1]}]"


def _side(root: fx.GraphModule, name: str) -> str:
    side = root.get_submodule(name)
    assert isinstance(side, fx.GraphModule)
    return _joined(_said(side, node) for node in side.graph.nodes)


def _joined(calls: Iterable[str]) -> str:
    """``block_1, 52 x block_2, glue_0``; a cycle of several is ``52 x (memo_6, block_0)``."""
    said, place = list(filter(None, calls)), 0
    parts = []
    while place < len(said):
        period, count = max(
            ((period, _repeats(said, place, period)) for period in range(1, LONGEST + 1)),
            key=lambda cycle: (cycle[0] * cycle[1] if cycle[1] > 1 else 1, -cycle[0]),
        )
        period = period if count > 1 else 1
        cycle = ", ".join(said[place : place + period])
        parts.append(cycle if count == 1 else f"{count} x ({cycle})" if period > 1 else f"{count} x {cycle}")
        place += period * count
    return ", ".join(parts)


def _repeats(said: list[str], place: int, period: int) -> int:
    cycle, count = said[place : place + period], 1
    while said[place + count * period : place + (count + 1) * period] == cycle:
        count += 1
    return count


def _regions(root: fx.GraphModule) -> Iterator[Line]:
    counts = Counter(name for graph in _graphs(root) for name in _called(graph))
    for name, region in root.named_children():
        if not isinstance(region, fx.GraphModule) or name not in counts:
            continue
        about = region.meta.get("lightint", {})
        paths = sorted({generic_path(path.split("@")[0]) for path in about.get("paths", ())})
        operations = sum(node.op == "call_function" for node in region.graph.nodes)
        host = ["runs on the host, operator by operator"] if about.get("on_host") else []
        yield name, ", ".join([_plural(counts[name], "call"), _plural(operations, "operation"), *host, *paths[:2]])


def _plural(count: int, one: str) -> str:
    return f"{count} {one}" if count == 1 else f"{count} {one}s"


def _graphs(root: fx.GraphModule) -> Iterator[fx.Graph]:
    """The root's, and those of its branches."""
    yield root.graph
    for _, child in root.named_children():
        if isinstance(child, fx.GraphModule) and child.meta.get("lightint", {}).get("kind") == "branch":
            yield child.graph


def _called(graph: fx.Graph) -> Iterator[str]:
    return (str(node.target) for node in graph.nodes if node.op == "call_module")
