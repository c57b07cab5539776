"""The line through two predictions, as a region: what a reused step gives when two steps were computed before it."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx

aten = torch.ops.aten

EXTRAPOLATE = "extrapolate"
"""The region's name in a root: ``extrapolate(latest, previous, at, latest_at, previous_at) -> (prediction,)``."""


def extrapolation(like: torch.Tensor) -> fx.GraphModule:
    """``latest + (latest - previous) * (at - latest_at) / (latest_at - previous_at)`` for predictions like ``like``.

    Sigmas are 0-dimensional float64 tensors on the host. Half precision is computed in float32 and rounded once.
    """
    graph = fx.Graph()
    latest, previous = (_placeholder(graph, name, like) for name in ("latest", "previous"))
    with like.fake_mode:  # type: ignore[attr-defined]
        sigma = torch.empty((), dtype=torch.float64, device="cpu")
    at, latest_at, previous_at = (_placeholder(graph, name, sigma) for name in ("at", "latest_at", "previous_at"))
    ahead, apart = _call(graph, aten.sub.Tensor, at, latest_at), _call(graph, aten.sub.Tensor, latest_at, previous_at)
    weight = _call(graph, aten.div.Tensor, ahead, apart)
    wide = torch.promote_types(like.dtype, torch.float32)
    if wide != like.dtype:
        latest, previous = (_call(graph, aten._to_copy.default, node, dtype=wide) for node in (latest, previous))
    step = _call(graph, aten.mul.Tensor, _call(graph, aten.sub.Tensor, latest, previous), weight)
    result = _call(graph, aten.add.Tensor, latest, step)
    if wide != like.dtype:
        result = _call(graph, aten._to_copy.default, result, dtype=like.dtype)
    graph.output((result,))
    module = fx.GraphModule(torch.nn.Module(), graph)
    module.meta["lightint"] = {"kind": "glue", "calls": 1, "paths": [], "nodes": len(graph.nodes)}
    return module


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


def _call(graph: fx.Graph, target: torch._ops.OpOverload, *args: fx.Node, **kwargs: Any) -> fx.Node:
    node = graph.call_function(target, args, kwargs)
    values = [each.meta["val"] for each in args]
    with next(value.fake_mode for value in values):
        node.meta["val"] = target(*values, **kwargs)
    return node
