"""A mask along one of its axes: whether it is the same everywhere along it, and the mask with that axis of size one.

Masks are spread before they meet (``repeat``, ``expand``), and read one row of what they spread. The row is made from
what was spread, so that a mask of queries and keys need not exist for its row of keys.
"""

from __future__ import annotations

from typing import Any

import torch.fx as fx

from lightint_compile.passes.ir.fake_values import Size
from lightint_compile.passes.ir.op_arguments import argument, permutation, rank_of, sizes_of, tensors
from lightint_compile.passes.ir.op_families import Family, aten, is_pointwise
from lightint_compile.passes.ir.rewriter import Rewriter


def is_even(node: fx.Node, axis: int) -> bool:
    """Whether the values of a tensor are provably the same along ``axis``, counted from the front."""
    if _is_one(node, axis) or node.target in Family.FILL.value:
        return True
    source = _source(node, axis)
    if source is not None:
        return is_even(*source)
    if _spreads(node, axis):
        return True
    if not is_pointwise(node):
        return False
    return all(inner < 0 or is_even(operand, inner) for operand, inner in _operands(node, axis))


def narrowed(node: fx.Node, axis: int, rewriter: Rewriter) -> fx.Node:
    """What :func:`is_even` along ``axis``, with that axis of size one."""
    if _is_one(node, axis):
        return node
    source = _source(node, axis)
    if source is not None and node.target in Family.PERMUTATION.value:
        return rewriter.call(node.target, narrowed(*source, rewriter), *node.args[1:])  # type: ignore[arg-type]
    if source is not None or _spreads(node, axis):
        inner = narrowed(*source, rewriter) if source is not None else _first(node)
        sizes = list(argument(node, _SIZES[node.target]))
        sizes[axis] = 1
        if len(sizes) == rank_of(inner) and all(size == 1 for size in sizes) and node.target is aten.repeat.default:
            return inner
        return rewriter.call(node.target, inner, sizes)  # type: ignore[arg-type]
    if is_pointwise(node) and node.target not in Family.FILL.value:
        given = {operand: narrowed(operand, inner, rewriter) for operand, inner in _operands(node, axis) if inner >= 0}
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda each: given.get(each, each))
        return rewriter.call(node.target, *args, **kwargs)  # type: ignore[arg-type]
    return rewriter.call(aten.slice.Tensor, node, axis, 0, 1)


_SIZES: dict[Any, str] = {aten.expand.default: "size", aten.repeat.default: "repeats"}


def _first(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]


def _is_one(node: fx.Node, axis: int) -> bool:
    return sizes_of(node)[axis] == 1


def _source(node: fx.Node, axis: int) -> tuple[fx.Node, int] | None:
    """The tensor, and its axis, that an operation hands on along ``axis`` without spreading it."""
    if node.target in Family.PERMUTATION.value:
        return _first(node), permutation(node)[axis]
    if node.target not in _SIZES:
        return None
    inner = axis - (rank_of(node) - rank_of(_first(node)))
    return None if inner < 0 or _is_one(_first(node), inner) else (_first(node), inner)


def _spreads(node: fx.Node, axis: int) -> bool:
    return node.target in _SIZES and _source(node, axis) is None


def _operands(node: fx.Node, axis: int) -> list[tuple[fx.Node, int]]:
    """The operands of a pointwise operation with the place that ``axis`` has in each, negative where it has none."""
    rank = rank_of(node)
    return [(operand, axis - (rank - rank_of(operand))) for operand in tensors(node)]


def last_size(node: fx.Node) -> Size:
    """Extent of the last axis."""
    return sizes_of(node)[-1]
