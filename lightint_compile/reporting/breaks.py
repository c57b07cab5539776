"""Graph breaks as remarks: where Dynamo ended a graph or gave a function up, what that costs, what would mend it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.fx as fx
import torch.utils._pytree as pytree

from lightint_compile.capture.calling import Break, Call, break_of_graph, breaks_before
from lightint_compile.passes.ir.remarks import Remark, RemarkKind

GRAPH_BREAK = "graph-break"
"""Who makes these remarks: Dynamo, and no pass."""

ACCELERATE = "accelerate"
"""Who makes remarks on functions that are traced although ``torch.compiler.disable`` stands on them, and on loops."""

LOOK_THROUGH = "lightint_compile.accelerate(model)"
"""The line that traces functions behind ``torch.compiler.disable``."""


def break_remarks(graph: fx.GraphModule, call: Call) -> list[Remark]:
    """What is cut around a graph that Dynamo is compiling now."""
    ended = break_of_graph()
    return [
        *(_remark("begins", one, "the graph begins after a break") for one in breaks_before()),
        *([_remark("ends", ended, "the graph ends in a break", _handed_over(graph))] if ended else ()),
        *_given_up(call),
    ]


def _remark(rule: str, cut: Break, what: str, handed_over: str = "") -> Remark:
    cost = f"No pass sees across it, and Inductor fuses nothing across it{handed_over}."
    return Remark(
        kind=RemarkKind.ANALYSIS,
        pass_name=GRAPH_BREAK,
        rule=rule,
        message=f"{what}: {cut.reason.rstrip('.')}. {cost}",
        source=cut.source,
        hint=f"{cut.fix}, or let {LOOK_THROUGH} trace the function" if cut.disabled else cut.fix,
        args={"disabled": cut.disabled} if cut.disabled else {},
    )


def _handed_over(graph: fx.GraphModule) -> str:
    values = [
        value
        for leaf in pytree.tree_leaves(graph.graph.output_node().args[0])
        if isinstance(leaf, fx.Node) and isinstance(value := leaf.meta.get("example_value"), torch.Tensor)
    ]
    size = sum(int(value.numel()) * value.element_size() for value in values if _is_known(value))
    return f"; {len(values)} tensors ({size / 2**20:.1f} MiB) are written to memory for what follows" if values else ""


def _is_known(value: torch.Tensor) -> bool:
    return all(isinstance(extent, int) for extent in value.shape)


def _given_up(call: Call) -> Iterator[Remark]:
    for place in call.given_up:
        name, _, source = place.partition(" (")
        yield Remark(
            kind=RemarkKind.ANALYSIS,
            pass_name=GRAPH_BREAK,
            rule="given-up",
            message=f"{name} runs outside of any graph, and calls this one from there. Dynamo gives a function up that "
            "breaks inside a loop, a with block or a try: what it calls becomes a graph each, and no pass sees them "
            "together.",
            source=source.rstrip(")"),
            hint="mend the breaks further down; fullgraph=True of torch.compile names the first",
        )
