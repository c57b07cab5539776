"""What layout operations do to axes: those whose result holds values of the operand only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.canonicalize_attention.axes import Axes, AxisError, atoms, fresh, regroup
from lightint_compile.passes.ir.op_arguments import arguments, permutation
from lightint_compile.passes.ir.program import tensor_of

aten = torch.ops.aten

#: Operations that keep the order of elements and only regroup dimensions.
VIEWS = {
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
}
_PERMUTES = {aten.permute.default, aten.transpose.int, aten.t.default, aten.movedim.int, aten.movedim.intlist}
_COPIES = {aten.clone.default, aten.contiguous.default}
_REPEATS = {aten.expand.default, aten.repeat.default, aten.repeat_interleave.self_int}


def is_layout(node: fx.Node) -> bool:
    """Whether ``node`` only moves, regroups or repeats elements of its first argument."""
    return node.target in VIEWS or node.target in _TRANSFER


def is_cast(node: fx.Node) -> bool:
    """Whether ``node`` changes the dtype and nothing else."""
    if node.target not in (aten._to_copy.default, aten.to.dtype):
        return False
    before, after = tensor_of(node.args[0]), tensor_of(node)
    return before is not None and after is not None and before.device == after.device


def transfer(node: fx.Node, axes: Axes) -> Axes:
    """The axes of a layout operation's or cast's result, from those of its operand.

    Raises:
        AxisError: the operation cuts an axis where it cannot be cut.
    """
    if node.target in VIEWS:
        return regroup(axes, tuple(node.meta["val"].shape))
    rule = _TRANSFER.get(node.target)
    return rule(node, axes) if rule is not None else axes


def _permute(node: fx.Node, axes: Axes) -> Axes:
    return tuple(axes[dim] for dim in permutation(node))


def _expand(node: fx.Node, axes: Axes) -> Axes:
    shape = node.meta["val"].shape
    padded = (((),) * (len(shape) - len(axes))) + tuple(axes)
    return tuple(axis if atoms(axis) else fresh(size) for axis, size in zip(padded, shape, strict=True))


def _repeat(node: fx.Node, axes: Axes) -> Axes:
    """Copies stand outside: element ``i`` of the result is element ``i % size`` of the operand."""
    times: Sequence[Any] = arguments(node)["repeats"]
    padded = (((),) * (len(times) - len(axes))) + tuple(axes)
    return tuple((*fresh(count), *axis) for count, axis in zip(times, padded, strict=True))


def _repeat_interleave(node: fx.Node, axes: Axes) -> Axes:
    """Copies stand inside: element ``i`` of the result is element ``i // repeats`` of the operand."""
    given = arguments(node)
    if given["dim"] is None:
        raise AxisError("repeat_interleave without a dimension flattens its operand")
    dim = given["dim"] % len(axes)
    return (*axes[:dim], (*axes[dim], *fresh(given["repeats"])), *axes[dim + 1 :])


def _same(node: fx.Node, axes: Axes) -> Axes:
    return axes


_TRANSFER: dict[Any, Callable[[fx.Node, Axes], Axes]] = {
    **dict.fromkeys(_PERMUTES, _permute),
    **dict.fromkeys(_COPIES, _same),
    aten.expand.default: _expand,
    aten.repeat.default: _repeat,
    aten.repeat_interleave.self_int: _repeat_interleave,
}
