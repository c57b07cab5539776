"""What reused steps are computed with, as regions: the line through two predictions, and an earlier step's residual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.fx as fx

aten = torch.ops.aten

EXTRAPOLATE = "extrapolate"
"""The region's name in a root: ``extrapolate(latest, previous, weight) -> (prediction,)``."""

RESIDUAL = "residual"
"""The region's name in a root: ``residual(now, first, last) -> (estimate,)``."""


def extrapolation(like: torch.Tensor) -> fx.GraphModule:
    """``latest + (latest - previous) * weight`` for predictions like ``like``.

    The weight is a 0-dimensional float64 tensor on the host, as a Python number is to an operator. Half precision is
    computed in float32 and rounded once.
    """
    with like.fake_mode:  # type: ignore[attr-defined]
        weight = torch.empty((), dtype=torch.float64, device="cpu")

    def line(graph: fx.Graph, latest: fx.Node, previous: fx.Node, weight: fx.Node) -> fx.Node:
        step = call(graph, aten.mul.Tensor, call(graph, aten.sub.Tensor, latest, previous), weight)
        return call(graph, aten.add.Tensor, latest, step)

    return _region({"latest": like, "previous": like, "weight": weight}, like.dtype, line)


def residual(like: torch.Tensor) -> fx.GraphModule:
    """``now + (last - first)`` for activations like ``like``: an estimate of the last block's output.

    ``now`` is this step's output of the first block; ``first`` and ``last`` are the latest computed step's outputs of
    the first and of the last. Half precision is computed in float32 and rounded once.
    """

    def moved(graph: fx.Graph, now: fx.Node, first: fx.Node, last: fx.Node) -> fx.Node:
        return call(graph, aten.add.Tensor, now, call(graph, aten.sub.Tensor, last, first))

    return _region({"now": like, "first": like, "last": like}, like.dtype, moved)


def _region(values: dict[str, torch.Tensor], dtype: torch.dtype, body: Callable[..., fx.Node]) -> fx.GraphModule:
    """A region that computes ``body`` on operands like ``values``; those of half precision are widened."""
    graph = fx.Graph()
    operands = [_placeholder(graph, name, value) for name, value in values.items()]
    result = body(graph, *(_widened(graph, operand) for operand in operands))
    if result.meta["val"].dtype != dtype:
        result = call(graph, aten._to_copy.default, result, dtype=dtype)
    graph.output((result,))
    module = fx.GraphModule(torch.nn.Module(), graph)
    module.meta["lightint"] = {"kind": "glue", "calls": 1, "paths": [], "nodes": len(graph.nodes)}
    return module


def _widened(graph: fx.Graph, operand: fx.Node) -> fx.Node:
    dtype = operand.meta["val"].dtype
    wide = torch.promote_types(dtype, torch.float32)
    return operand if wide == dtype else call(graph, aten._to_copy.default, operand, dtype=wide)


def weight_of(graph: fx.Graph, at: fx.Node, latest_at: fx.Node, previous_at: fx.Node) -> fx.Node:
    """``(at - latest_at) / (latest_at - previous_at)``: the place of a sigma on the line, computed on the host."""
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
