"""The normal form of a small module without Dynamo and without torch.export, which take longer than the passes."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.fx as fx
from torch import Tensor, nn

from lightint_compile.capture import from_dynamo
from lightint_compile.passes.ir.program import Program, tensor_of

aten = torch.ops.aten


def captured(module: nn.Module, args: Sequence[Tensor]) -> tuple[Program, list[Tensor]]:
    """The program of a call, and the flat inputs to run it with: the parameters, then the arguments."""
    named = dict(module.named_parameters())
    inputs = [*named.values(), *args]

    def call(*flat: Tensor) -> object:
        return torch.func.functional_call(module, dict(zip(named, flat, strict=False)), flat[len(named) :])

    graph = fx.Graph()
    names = [*(name.replace(".", "_") for name in named), *(f"argument_{index}" for index in range(len(args)))]
    placeholders = [graph.placeholder(name) for name in names]
    graph.output(graph.call_function(call, tuple(placeholders)))
    return from_dynamo(fx.GraphModule({}, graph), inputs, name=type(module).__name__), inputs


def disturbed(program: Program, seed: int) -> Program:
    """A copy in another order of execution, with dead code in it: what the passes find must be the same."""
    draw = random.Random(seed)
    copy = program.snapshot()
    _shuffle(copy.graph, draw)
    for node in [node for node in copy.calls() if tensor_of(node) is not None]:
        if draw.random() < 0.2:
            _add_dead(copy.graph, node)
    copy.graph.lint()
    copy.graph_module.recompile()
    return copy


def _add_dead(graph: fx.Graph, node: fx.Node) -> None:
    with graph.inserting_after(node):
        dead = graph.call_function(aten.clone.default, (node,))
    dead.meta["val"] = node.meta["val"]


def _shuffle(graph: fx.Graph, draw: random.Random) -> None:
    """Move every node as early or as late as chance has it, producers first."""
    waiting = {node: len(node.all_input_nodes) for node in graph.nodes if node.op not in ("placeholder", "output")}
    ready = [node for node, count in waiting.items() if count == 0]
    done = [node for node in graph.nodes if node.op == "placeholder"]
    for node in done:
        ready.extend(_released(node, waiting))
    last = done[-1] if done else graph._root
    while ready:
        node = ready.pop(draw.randrange(len(ready)))
        last.append(node)
        last = node
        ready.extend(_released(node, waiting))


def _released(node: fx.Node, waiting: dict[fx.Node, int]) -> list[fx.Node]:
    free = []
    for reader in node.users:
        if reader in waiting:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                free.append(reader)
    return free
