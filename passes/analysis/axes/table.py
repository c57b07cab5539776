"""The movement of any call: the table's, that of an elementwise operator, or nothing."""

from __future__ import annotations

import torch.fx as fx

from lightint_compile.passes.analysis.axes import moving, writing  # noqa: F401 - their rules register themselves
from lightint_compile.passes.analysis.axes.attention import attention, dialect_of
from lightint_compile.passes.analysis.axes.computing import of_own_operators, pointwise
from lightint_compile.passes.analysis.axes.movement import MOVEMENTS, Movement
from lightint_compile.passes.ir.op_arguments import tensors
from lightint_compile.passes.ir.op_families import is_pointwise
from lightint_compile.passes.ir.program import tensor_of


def movement_of(node: fx.Node) -> Movement | None:
    """What a call does to axes; ``None`` where the table says nothing, and for a call on no tensor at all."""
    rule = MOVEMENTS.get(node.target)
    if rule is not None:
        return rule(node)
    if is_pointwise(node):
        return pointwise(node) if tensor_of(node) is not None else None
    dialect = dialect_of(node)
    if dialect is not None:
        return attention(node, dialect)
    if getattr(node.target, "namespace", "") == "lightint" and tensors(node):
        return of_own_operators(node)
    return None
