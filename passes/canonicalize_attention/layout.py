"""What a layout operation does to axes; the operations of which every value of the result is a value of the operand."""

from __future__ import annotations

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.axes.movement import MOVEMENTS, Alike, Along, Movement, Times
from lightint_compile.passes.analysis.axes.table import movement_of
from lightint_compile.passes.canonicalize_attention.axes import Axes, fresh, regroup
from lightint_compile.passes.ir.op_arguments import tensors
from lightint_compile.passes.ir.op_families import COPIES, Family

aten = torch.ops.aten

#: Operations whose result is known by its sizes alone.
VIEWS = frozenset((*Family.VIEW.value, *Family.SQUEEZE.value, *Family.UNSQUEEZE.value))


def is_layout(node: fx.Node) -> bool:
    """Whether ``node`` only moves, regroups or repeats elements of its first argument."""
    return _moved(node) is not None


def _moved(node: fx.Node) -> Movement | None:
    """The movement of a layout operation; ``None`` for any other node."""
    if node.op != "call_function" or not (node.target in MOVEMENTS or node.target in COPIES):
        return None
    movement = movement_of(node)
    if movement is None or movement.computes or movement.reads or len(tensors(node)) != 1:
        return None
    whole = movement.regroups is not None or len(movement.outputs) == 1
    return movement if whole and all(isinstance(way, Along | Alike | Times) for way in movement.ways()) else None


def transfer(node: fx.Node, axes: Axes) -> Axes:
    """The axes of a layout operation's or cast's result, from those of its operand.

    Raises:
        AxisError: the operation cuts an axis where it cannot be cut.
    """
    movement = _moved(node)
    if movement is None:
        return axes
    shape = tuple(node.meta["val"].shape)
    if movement.regroups is not None or node.target in VIEWS:
        return regroup(axes, shape)
    result: list[tuple[object, ...]] = []
    for way, size in zip(movement.ways(), shape, strict=True):
        match way:
            case Along((ref,)):
                result.append(axes[ref.axis])
            case Times(ref, copies, outside):
                own = () if ref is None else axes[ref.axis]
                result.append((*fresh(copies), *own) if outside else (*own, *fresh(copies)))
            case _:
                result.append(fresh(size))
    return tuple(result)  # type: ignore[arg-type]
