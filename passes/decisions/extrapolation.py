"""The line through two predictions, as a region: what a reused step gives when two steps were computed before it."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx

aten = torch.ops.aten

EXTRAPOLATE = "extrapolate"
"""The region's name in a root: ``extrapolate(latest, previous, weight) -> (prediction,)``."""


def extrapolation(like: torch.Tensor) -> fx.GraphModule:
    """``latest + (latest - previous) * weight`` for predictions like ``like``.

    The weight is a 0-dimensional float64 tensor on the host, as a Python number is to an operator. Half precision is
    computed in float32 and rounded once.
    """
    graph = fx.Graph()
    latest, previous = (_placeholder(graph, name, like) for name in ("latest", "previous"))
    with like.fake_mode:  # type: ignore[attr-defined]
        weight = _placeholder(graph, "weight", torch.empty((), dtype=torch.float64, device="cpu"))
    wide = torch.promote_types(like.dtype, torch.float32)
    if wide != like.dtype:
        latest, previous = (call(graph, aten._to_copy.default, node, dtype=wide) for node in (latest, previous))
    step = call(graph, aten.mul.Tensor, call(graph, aten.sub.Tensor, latest, previous), weight)
    result = call(graph, aten.add.Tensor, latest, step)
    if wide != like.dtype:
        result = call(graph, aten._to_copy.default, result, dtype=like.dtype)
    graph.output((result,))
    module = fx.GraphModule(torch.nn.Module(), graph)
    module.meta["lightint"] = {"kind": "glue", "calls": 1, "paths": [], "nodes": len(graph.nodes)}
    return module


def weight_of(graph: fx.Graph, at: fx.Node, latest_at: fx.Node, previous_at: fx.Node) -> fx.Node:
    """``(at - latest_at) / (latest_at - previous_at)``: how far along the line a sigma lies, computed on the host."""
    ahead, apart = call(graph, aten.sub.Tensor, at, latest_at), call(graph, aten.sub.Tensor, latest_at, previous_at)
    return call(graph, aten.div.Tensor, ahead, apart)


def number(graph: fx.Graph, value: float, like: torch.Tensor) -> fx.Node:
    """``value`` as a 0-dimensional float64 tensor on the host, with a fake value in the mode of ``like``."""
    node = graph.call_function(aten.full.default, ([], value), {"dtype": torch.float64, "device": torch.device("cpu")})
    with like.fake_mode:  # type: ignore[attr-defined]
        node.meta["val"] = torch.empty((), dtype=torch.float64, device="cpu")
    return node


def _placeholder(graph: fx.Graph, name: str, value: torch.Tensor) -> fx.Node:
    node = graph.placeholder(name)
    node.meta["val"] = value
    return node


def call(graph: fx.Graph, target: torch._ops.OpOverload, *args: fx.Node, **kwargs: Any) -> fx.Node:
    """A node whose fake value is computed from those of its arguments."""
    node = graph.call_function(target, args, kwargs)
    values = [each.meta["val"] for each in args]
    with next(value.fake_mode for value in values):
        node.meta["val"] = target(*values, **kwargs)
    return node
