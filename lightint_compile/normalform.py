"""Tidying a fresh trace: operations that do nothing at inference, and one spelling where ATen has several."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from lightint_compile.autocasting import MODE_SWITCHES

aten = torch.ops.aten

#: What a trace leaves behind and nothing reads: assertions the guards already hold, switches the dtypes already show.
LEFTOVERS = {aten._assert_tensor_metadata.default, *MODE_SWITCHES}

#: Operations that return their first argument unchanged in a functional graph.
_ALIASES = {aten.alias.default, aten.detach.default, aten.lift_fresh.default, aten.lift_fresh_copy.default}


def tidy(graph_module: fx.GraphModule) -> None:
    """Remove what does nothing and fold spellings, in place; dead code goes with it."""
    for node in reversed(graph_module.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in LEFTOVERS:
            graph_module.graph.erase_node(node)
        elif _does_nothing(node):
            node.replace_all_uses_with(node.args[0], propagate_meta=False)
            graph_module.graph.erase_node(node)
        elif node.target is aten._unsafe_view.default:
            node.target = aten.reshape.default
        elif node.target is aten.type_as.default:
            _as_copy(node)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()


def _does_nothing(node: fx.Node) -> bool:
    if not isinstance(node.args[0] if node.args else None, fx.Node):
        return False
    if node.target in _ALIASES:
        return True
    if node.target is aten.dropout.default:
        return node.args[2] is False or bool(node.args[1] == 0.0)
    if node.target in (
        aten._to_copy.default,
        aten.type_as.default,
        aten.to.dtype,
        aten.to.device,
        aten.to.dtype_layout,
    ):
        return _same_tensor(node, node.args[0]) and node.kwargs.get("memory_format") is None
    if node.target in (aten.view.default, aten.reshape.default, aten.expand.default):
        return _same_tensor(node, node.args[0])
    return False


def _same_tensor(node: fx.Node, source: Any) -> bool:
    """Same dtype, device, sizes and strides, known without a new guard."""
    left, right = node.meta.get("val"), source.meta.get("val")
    if not isinstance(left, torch.Tensor) or not isinstance(right, torch.Tensor) or left.dim() != right.dim():
        return False
    if left.dtype != right.dtype or left.device != right.device:
        return False
    pairs = (*zip(left.shape, right.shape, strict=True), *zip(left.stride(), right.stride(), strict=True))
    return all(statically_known_true(a == b) for a, b in pairs)


def _as_copy(node: fx.Node) -> None:
    """``type_as`` reads its second argument for the dtype and device only: without it, no false dependency."""
    value = node.meta["val"]
    node.target = aten._to_copy.default
    node.kwargs = {"dtype": value.dtype, "device": value.device}
    node.args = (node.args[0],)
