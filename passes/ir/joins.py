"""What was concatenated to make an axis, looked for through permutations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.fx as fx

from lightint_compile.passes.ir.fake_values import Size, size_of
from lightint_compile.passes.ir.op_arguments import argument, permutation
from lightint_compile.passes.ir.op_families import Family

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Piece:
    """One operand of the concatenation that made a key or value axis.

    Attributes:
        node: the operand.
        axis: its token axis.
        layout: permutations between the concatenation and the attention, first one first.
        length: its tokens.
    """

    node: fx.Node
    axis: int
    layout: tuple[tuple[int, ...], ...]
    length: Size


def pieces_of(node: fx.Node, axis: int, layout: tuple[tuple[int, ...], ...] = ()) -> Iterator[Piece]:
    """Operands of the concatenation along ``axis``, looked for through permutations; else the node itself."""
    source, order = _permutation(node)
    if source is not None and _is_cat(source, order[axis]):
        yield from pieces_of(source, order[axis], (order, *layout))
    elif _is_cat(node, axis):
        for operand in argument(node, "tensors"):
            if _extent(operand, axis) != 0:
                yield from pieces_of(operand, axis, layout)
    else:
        yield Piece(node, axis, layout, _extent(node, axis))


def _is_cat(node: fx.Node, axis: int) -> bool:
    return node.target in (aten.cat.default, aten.concat.default) and int(argument(node, "dim")) % _rank(node) == axis


def _permutation(node: fx.Node) -> tuple[fx.Node | None, tuple[int, ...]]:
    """The source and order of a permutation; ``None`` for another node."""
    if node.target not in Family.PERMUTATION.value:
        return None, ()
    return argument(node, "self"), permutation(node)


def _rank(node: fx.Node) -> int:
    return len(node.meta["val"].shape)


def _extent(node: fx.Node, axis: int) -> Size:
    return size_of(node.meta["val"].shape[axis])
