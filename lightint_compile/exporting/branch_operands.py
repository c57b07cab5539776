"""Operands of branches keep the strides that they were captured with.

AOTInductor compiles a branch for the strides of its captured operands, and then hands it buffers whose strides it chose
by itself, without an error: a transposed matrix is read as if it were not, and a tensor that is also part of a
concatenation lies inside of that one, with its strides. So each operand is told its strides here. Its order of axes
alone, which Inductor has an operator for, is not enough: a part has the order of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor
from torch._prims_common import is_non_overlapping_and_dense_or_false
from torch.library import Library

_library = Library("lightint_export", "DEF")
_library.define("with_strides(Tensor input, SymInt[] strides) -> Tensor")


def _with_strides(input: Tensor, strides: Sequence[int]) -> Tensor:
    """A copy of ``input`` in memory of these strides."""
    return torch.empty_strided(input.shape, strides, dtype=input.dtype, device=input.device).copy_(input)


_library.impl("with_strides", _with_strides, "CompositeExplicitAutograd")
_KEEP: Any = torch.ops.lightint_export.with_strides.default


@cache
def _teach_inductor() -> None:
    """Inductor takes the operator for a demand on a buffer: it copies only one that has other strides."""
    from torch._inductor.ir import ExternKernel
    from torch._inductor.lowering import register_lowering

    register_lowering(_KEEP, type_promotion_kind=None)(ExternKernel.require_exact_strides)


def keep_strides(root: fx.GraphModule) -> bool:
    """Fix the strides of all operands of branches, in every graph below ``root``; whether there are branches."""
    _teach_inductor()
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
    """The operand with its captured strides; inputs of the graph have those of the call already."""
    value = operand.meta.get("val") if isinstance(operand, fx.Node) else None
    if not isinstance(value, Tensor) or operand.op != "call_function" or value.ndim < 1:
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
