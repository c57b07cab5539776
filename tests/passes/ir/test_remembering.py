"""A walk takes over from the last one what still follows from the same things, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx
import worldplay_tiny
from torch import Tensor

from lightint_compile import capture
from lightint_compile.options import LightintOptions
from lightint_compile.options.pipelines import pipeline_of
from lightint_compile.passes.analysis.token_grid import TokenGrid
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.ir.remembering import Memory, Walk

aten = torch.ops.aten


def chain() -> tuple[fx.Graph, list[fx.Node]]:
    graph = fx.Graph()
    nodes = [graph.placeholder("x"), graph.placeholder("y")]
    nodes.append(graph.call_function(aten.add.Tensor, (nodes[0], nodes[1])))
    nodes.append(graph.call_function(aten.sin.default, (nodes[2],)))
    nodes.append(graph.call_function(aten.cos.default, (nodes[1],)))
    graph.output((nodes[3], nodes[4]))
    for node in nodes:
        node.meta["val"] = torch.zeros(2)
    return graph, nodes


def walked(graph: fx.Graph, memory: Memory[Any], given: str = "x") -> list[str]:
    """The nodes at which something was found anew; what is found is all that there is to read, but for capitals."""
    walk, anew, known = Walk[Any](memory), list[str](), dict[fx.Node, Any]()

    def find(node: fx.Node) -> list[str]:
        anew.append(node.name)
        read = str([node.target, node.meta.get("val"), [known[source] for source in node.all_input_nodes]])
        return [read.lower()]

    for node in graph.nodes:
        if node.op == "placeholder":
            known[node] = walk.given(node, given if node.name == "x" else "other")
        else:
            known[node] = walk.at(node, find)
    return anew


def test_what_did_not_change_is_not_found_again() -> None:
    graph, _ = chain()
    memory: Memory[Any] = Memory()
    assert walked(graph, memory) == ["add_tensor", "sin_default", "cos_default", "output"]
    assert walked(graph, memory) == []


def test_what_follows_from_a_change_is_found_again() -> None:
    graph, nodes = chain()
    memory: Memory[Any] = Memory()
    walked(graph, memory)
    assert walked(graph, memory, given="z") == ["add_tensor", "sin_default", "output"]
    nodes[2].args = (nodes[1], nodes[1])
    assert walked(graph, memory, given="z") == ["add_tensor", "sin_default", "output"]
    nodes[4].meta["val"] = torch.zeros(3)
    assert walked(graph, memory, given="z") == ["cos_default", "output"]
    nodes[3].target = aten.tan.default
    assert walked(graph, memory, given="z") == ["sin_default", "output"]
    nodes[3].replace_all_uses_with(nodes[4], propagate_meta=False)
    assert walked(graph, memory, given="z") == ["output"]


def test_what_is_found_again_as_it_was_changes_nothing_behind_it() -> None:
    graph, nodes = chain()
    memory: Memory[Any] = Memory()
    walked(graph, memory)
    assert walked(graph, memory, given="X") == ["add_tensor"]
    assert walked(graph, memory, given="X") == []
    nodes[2].meta["val"] = torch.zeros(2)  # what reads a value may read more of it than what was found at it
    assert walked(graph, memory, given="X") == ["add_tensor", "sin_default"]


def test_the_grid_after_every_pass_is_the_one_found_from_nothing() -> None:
    program = worldplay_tiny.program().snapshot()
    seen: list[str] = []

    def check(step: Any, now: Program, result: Any) -> None:
        remembered = now.fact(TokenGrid).axes
        now._memories.clear()
        assert TokenGrid.analyse(now).axes == remembered
        seen.append(step.name)

    pipeline = pipeline_of(LightintOptions.from_mapping({"preset": "all"}))
    pipeline.run(program, strict=True, observer=check)
    assert len(seen) == len(pipeline.passes)


def test_numbers_that_are_made_differently_pick_other_frames() -> None:
    def picked(video: Tensor) -> Tensor:
        return video[:, :, torch.arange(4) + 1]

    program = capture.trace(picked, (torch.zeros(1, 2, 8, 4, 4),))
    before = program.fact(TokenGrid).axes
    (shifted,) = program.calls(aten.add.Tensor)
    (taken,) = program.calls(aten.index.Tensor)
    shifted.args = (shifted.args[0], 2)
    program.changed()
    after = program.fact(TokenGrid).axes
    assert before[shifted] == after[shifted]
    assert (before[taken][2][0].start, after[taken][2][0].start) == (1, 2)


def test_a_snapshot_remembers_nothing() -> None:
    program = worldplay_tiny.program().snapshot()
    program.fact(TokenGrid)
    assert program._memories and not program.snapshot()._memories
