"""Bodies of steps in a root written by hand: which block's output a step watches."""

from __future__ import annotations

import operator

import torch
import torch.fx as fx
from torch import nn

from lightint_compile.passes.analysis.loop_marks import MarkedStep
from lightint_compile.passes.step_cache.steps import bodies_of, body_of

TOKENS, CONTEXT = torch.zeros(1, 8, 4), torch.zeros(2, 1, 16, 4)


def region(attends: bool) -> fx.GraphModule:
    graph = fx.Graph()
    value = graph.placeholder("value")
    if attends:
        value = graph.call_function(torch.ops.aten.scaled_dot_product_attention.default, (value, value, value))
    graph.output((value,))
    return fx.GraphModule(nn.Module(), graph)


class Root:
    """A context whose keys a region makes together with the first latent's tokens, and two steps of two blocks."""

    def __init__(self) -> None:
        root = nn.Module()
        for name, attends in (("joined", False), ("remember", True), ("block", True), ("head", False)):
            root.add_module(name, region(attends))
        self.graph = fx.Graph(root)
        noise, past = (self.graph.placeholder(name) for name in ("noise", "past"))
        joined = self.graph.call_module("joined", (noise, past))
        tokens, given = self.element(joined, 0, TOKENS), self.element(joined, 1, CONTEXT)
        self.keys = self.call("remember", (given,), CONTEXT)
        first = self.step(tokens)
        second = self.step(first)
        self.graph.output(second)
        self.steps = (MarkedStep(noise, (first,), ()), MarkedStep(first, (second,), ()))
        self.module = fx.GraphModule(root, self.graph)

    def element(self, call: fx.Node, place: int, value: torch.Tensor) -> fx.Node:
        node = self.graph.call_function(operator.getitem, (call, place))
        node.meta["val"] = value
        return node

    def call(self, name: str, args: tuple[fx.Node, ...], value: torch.Tensor) -> fx.Node:
        return self.element(self.graph.call_module(name, args), 0, value)

    def step(self, latent: fx.Node) -> fx.Node:
        one = self.call("block", (latent, self.keys), TOKENS)
        other = self.call("block", (one, self.keys), TOKENS)
        return self.call("head", (other,), TOKENS)


def test_a_step_watches_its_own_first_block_where_a_region_joins_its_input_and_the_context() -> None:
    root = Root()
    assert body_of(root.module, root.steps[0]).first is root.keys, "by what depends on the noise alone"
    first, second = bodies_of(root.module, root.steps)
    blocks = [node for node in root.graph.nodes if node.target == "block"]
    assert [body.first.args[0] for body in (first, second)] == [blocks[0], blocks[2]]
    assert [body.last.args[0] for body in (first, second)] == [blocks[1], blocks[3]]
