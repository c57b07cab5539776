"""Graphs in which gradients are recorded: rewrites are for inference, and a trace of ours records none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx as fx

_SWITCH = torch._C._set_grad_enabled


def records_gradients(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> bool:
    """Whether something that requires gradients may run where they are recorded, by the caller or by the graph.

    A model may compute a gradient under ``torch.enable_grad()`` while its caller records none, as guidance does.
    """
    required = any(isinstance(value, torch.Tensor) and value.requires_grad for value in inputs)
    if required and torch.is_grad_enabled():
        return True
    nodes = [node for part in graph_module.modules() if isinstance(part, fx.GraphModule) for node in part.graph.nodes]
    is_recorded = torch.is_grad_enabled() or any(node.target is _SWITCH and node.args[0] is True for node in nodes)
    return is_recorded and (required or any(map(_asks, nodes)))


def _asks(node: fx.Node) -> bool:
    """Whether a node has a tensor require gradients from then on."""
    asked = node.args[1] if len(node.args) > 1 else node.kwargs.get("requires_grad", True)
    return node.target == "requires_grad_" and asked is not False
