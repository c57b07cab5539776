"""What a node does besides computing its value: randomness, writes, checks. The schema's tag alone is too coarse."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.fx as fx
from torch.fx.node import _side_effectful_functions

from lightint_compile.passes.ir.op_arguments import argument

aten = torch.ops.aten

#: Operations tagged as random that draw nothing when this argument has this value.
_SILENT: dict[Any, tuple[str, Any]] = {
    aten.scaled_dot_product_attention.default: ("dropout_p", 0.0),
    aten.dropout.default: ("train", False),
}


def draws_random(node: fx.Node) -> bool:
    """Whether two evaluations with the same arguments may differ. Attention without dropout draws nothing."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not _is_seeded(target):
        return False
    if target in _SILENT:
        name, silent = _SILENT[target]
        return bool(argument(node, name) != silent)
    return True


@cache
def _is_seeded(target: torch._ops.OpOverload) -> bool:
    return torch.Tag.nondeterministic_seeded in target.tags


def is_pure(node: fx.Node) -> bool:
    """Whether a node may be erased when unread, moved, and merged with an equal one."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten" and node.op == "call_function":
        return not (target in _side_effectful_functions or _has_effects(target) or draws_random(node))
    return not draws_random(node) and not node.is_impure(impure_random=False)


@cache
def _has_effects(target: torch._ops.OpOverload) -> bool:
    """What torch says of an operator of its own; what users say of one (``torch.fx.has_side_effect``) may change."""
    return fx.Graph().call_function(target).is_impure(impure_random=False)


def live_nodes(graph: fx.Graph) -> list[fx.Node]:
    """Nodes that something observable depends on, in graph order; the inputs and the output are among them."""
    needed: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node in needed or node.op in ("placeholder", "output") or not is_pure(node):
            needed.add(node)
            needed.update(node.all_input_nodes)
    return [node for node in graph.nodes if node in needed]
