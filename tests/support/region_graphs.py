"""Graphs of regions by hand, and what tests ask of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx


def region(function: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    return make_fx(function, tracing_mode="fake", pre_dispatch=True)(*inputs)


def targets(graph_module: fx.GraphModule) -> set[Any]:
    return {node.target for node in graph_module.graph.nodes if node.op == "call_function"}


def strides(tensor: Tensor) -> list[int]:
    """Strides that address something: not those of dimensions of size one."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def one_node(target: Any, arguments: Callable[[Sequence[fx.Node]], tuple[Any, ...]], *inputs: Tensor) -> fx.GraphModule:
    """A graph of one call whose fake values are those of ``inputs``."""
    graph, mode = fx.Graph(), FakeTensorMode()
    nodes = [graph.placeholder(f"x{place}") for place in range(len(inputs))]
    for node, value in zip(nodes, inputs, strict=True):
        node.meta["val"] = mode.from_tensor(value)
    call = graph.call_function(target, arguments(nodes))
    with mode:
        call.meta["val"] = target(*fx.node.map_arg(call.args, lambda node: node.meta["val"]))
    graph.output((call,))
    return fx.GraphModule(torch.nn.Module(), graph)
