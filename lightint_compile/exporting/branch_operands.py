"""Operands of branches keep the strides that they were captured with.

AOTInductor compiles a branch for the strides of its captured operands, and then hands it buffers whose order of axes it
chose by itself: a transposed matrix is read as if it were not, without an error. Each operand is told its order here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch._inductor.inductor_prims
import torch.fx as fx
from torch._prims_common import is_non_overlapping_and_dense_or_false

_KEEP: Any = torch.ops.prims.inductor_force_stride_order.default
"""Inductor's own: nothing is done where the order is right already."""


def keep_strides(root: fx.GraphModule) -> bool:
    """Fix the strides of all operands of branches, in every graph below ``root``; whether there are branches."""
    found = False
    for module in [each for each in root.modules() if isinstance(each, fx.GraphModule)]:
        conds = _conds(module)
        for node in conds:
            given: Any = node.args[3]
            operands = [_kept(node.graph, node, operand) for operand in given]
            node.args = (*node.args[:3], tuple(operands))
        if conds:
            module.recompile()
            found = True
    return found


def _conds(module: fx.GraphModule) -> list[fx.Node]:
    return list(module.graph.find_nodes(op="call_function", target=torch.ops.higher_order.cond))


def _kept(graph: fx.Graph, branch: fx.Node, operand: Any) -> Any:
    """The operand in its captured order; inputs of the graph have the strides of the call already."""
    value = operand.meta.get("val") if isinstance(operand, fx.Node) else None
    if not isinstance(value, torch.Tensor) or operand.op != "call_function" or value.ndim < 2:
        return operand
    with graph.inserting_before(branch):
        if not is_non_overlapping_and_dense_or_false(value):
            operand = _copied(graph, operand)
        value = operand.meta["val"]
        strides = [_stride(graph, operand, axis, each) for axis, each in enumerate(value.stride())]
        made = graph.call_function(_KEEP, (operand, strides))
    made.meta = dict(operand.meta)
    return made


def _copied(graph: fx.Graph, operand: fx.Node) -> fx.Node:
    """A part of a larger memory, or a memory that is read several times, has no order of its own."""
    form: dict[str, Any] = {"memory_format": torch.contiguous_format}
    made = graph.call_function(torch.ops.aten.clone.default, (operand,), form)
    made.meta = {**operand.meta, "val": operand.meta["val"].clone(**form)}
    return made


def _stride(graph: fx.Graph, operand: fx.Node, axis: int, stride: int | torch.SymInt) -> int | fx.Node:
    if isinstance(stride, int):
        return stride
    made = graph.call_function(torch.ops.aten.sym_stride.int, (operand, axis))
    made.meta["val"] = stride
    return made
