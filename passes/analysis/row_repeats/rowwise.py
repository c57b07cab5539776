"""Rules of operations that compute each row from that row: pointwise, linear, norms, products, reductions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.row_repeats.effects import (
    MIXES,
    Blocked,
    Layouts,
    Plan,
    Rule,
    others_full,
    unless_lost,
)
from lightint_compile.passes.analysis.row_repeats.layout import (
    Axis,
    Layout,
    is_constant,
    kept,
    meet,
    repeats,
    size,
    without,
)
from lightint_compile.passes.ir.op_arguments import dimension, dimensions, einsum_of, sizes_of, tensors
from lightint_compile.passes.ir.op_families import COPIES, Family, by_operator

aten = torch.ops.aten


def pointwise(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    """Axes on which all operands repeat alike stay repeated; an operand of size one on an axis has no say there."""
    operands = tensors(node)
    result = _broadcast([(layouts(operand), sizes_of(operand)) for operand in operands], len(sizes_of(node)))
    if not repeats(result):
        return MIXES if len(operands) > 1 else Blocked("its operand does not repeat")
    needed = {operand: _fitted(layouts(operand), result) for operand in operands}
    return Plan(result, needed, computes=node.target not in COPIES)


def _broadcast(operands: Iterable[tuple[Layout, Any]], rank: int) -> Layout:
    """The layout of operands broadcast together, axes counted from the back."""
    axes: list[Axis] = [()] * rank
    for layout, sizes in operands:
        for back in range(1, min(len(layout), rank) + 1):
            if sizes[-back] != 1:
                entry, seen = layout[-back], axes[-back]
                axes[-back] = entry if size(seen) == 1 else meet(seen, entry)
    return tuple(axes)


def _fitted(layout: Layout, result: Layout) -> Layout:
    """What an operand must look like to be broadcast against ``result``: constant axes may stay of size one."""
    wanted = result[len(result) - len(layout) :]
    pairs = zip(layout, wanted, strict=True)
    return tuple(entry if is_constant(entry) or size(entry) == 1 else want for entry, want in pairs)


def _linear(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    source = cast(fx.Node, node.args[0])
    needed = without(layouts(source), [-1])
    plan = Plan((*needed[:-1], kept(sizes_of(node)[-1])), {source: needed} | others_full(node, source))
    return unless_lost(plan, "linear reads across the repeated axis, which is its feature axis")


def _normalised(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    """layer_norm and rms_norm over trailing axes."""
    source, trailing = cast(fx.Node, node.args[0]), len(cast(list[int], node.args[1]))
    needed = without(layouts(source), range(-trailing, 0))
    plan = Plan(needed, {source: needed} | others_full(node, source))
    return unless_lost(plan, "the norm's statistics run over the repeated axis")


def _over(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    source = cast(fx.Node, node.args[0])
    dim = dimension(node, len(layouts(source)))
    needed = without(layouts(source), [dim])
    return unless_lost(Plan(needed, {source: needed}), f"it runs along the repeated axis {dim}")


def _reduction(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    source = cast(fx.Node, node.args[0])
    rank = len(layouts(source))
    dims = dimensions(node, rank)
    keeps = len(sizes_of(node)) == rank
    needed = without(layouts(source), dims)
    axes = (() if dim in dims else entry for dim, entry in enumerate(needed) if keeps or dim not in dims)
    return unless_lost(Plan(tuple(axes), {source: needed}), "it reduces over the repeated axis")


def _matmul(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    left, right = cast(list[fx.Node], node.args[:2])
    return _product(node, layouts, left, right)


def _added_product(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    """addmm and baddbmm: the product is broadcast with what is added to it."""
    added, left, right = cast(list[fx.Node], node.args[:3])
    return _product(node, layouts, left, right, added)


def _product(
    node: fx.Node, layouts: Layouts, left: fx.Node, right: fx.Node, added: fx.Node | None = None
) -> Plan | Blocked:
    """Batch axes behave as in a pointwise operation; the rows of the left and the columns of the right are free."""
    if left is right or added in (left, right) or min(len(layouts(left)), len(layouts(right))) < 2:
        return Blocked("a product with a vector, or of a value with itself")
    first, second = without(layouts(left), [-1]), without(layouts(right), [-2])
    leading = [(axes[:-2], sizes_of(operand)[:-2]) for axes, operand in ((first, left), (second, right))]
    result = (*_broadcast(leading, len(sizes_of(node)) - 2), first[-2], second[-1])
    operands: dict[fx.Node, Layout] = {}
    if added is not None:
        result = _broadcast([(result, sizes_of(node)), (layouts(added), sizes_of(added))], len(result))
        operands[added] = _fitted(layouts(added), result)
    batch, exact = result[:-2], node.target in (aten.bmm.default, aten.baddbmm.default)
    operands[left] = (*(batch if exact else _fitted(first[:-2], batch)), result[-2], first[-1])
    operands[right] = (*(batch if exact else _fitted(second[:-2], batch)), second[-2], result[-1])
    return Plan(result, operands) if repeats(result) else MIXES


def _einsum(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    """Labels of the result keep what all their operands share; a contracted label is read in full."""
    equation = einsum_of(node)
    if equation is None:
        return Blocked("an einsum without an arrow, with an ellipsis, or of a value with itself")
    named, output = equation
    axes: dict[str, Axis] = {}
    for labels, operand in named:
        for label, entry in zip(labels, layouts(operand), strict=True):
            if label in axes and size(axes[label]) != size(entry):
                return Blocked("an einsum that broadcasts")
            axes[label] = meet(axes[label], entry) if label in axes else entry
    axes = {label: entry if label in output else kept(size(entry)) for label, entry in axes.items()}
    needed = {operand: tuple(axes[label] for label in labels) for labels, operand in named}
    plan = Plan(tuple(axes[label] for label in output), needed)
    return plan if repeats(plan.result) else MIXES


def _attention(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    """Batch and head axes that query, key and value share stay; so do repeated queries. A mask is read in full."""
    query, key, value = cast(list[fx.Node], node.args[:3])
    options = dict(zip(("attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"), node.args[3:], strict=False))
    options |= node.kwargs
    if len({query, key, value}) != 3 or any(
        options.get(n) for n in ("attn_mask", "dropout_p", "is_causal", "enable_gqa")
    ):
        return Blocked("attention with a mask, dropout, grouped heads, or of a value with itself", mixes=True)
    rank = len(sizes_of(node))
    batch = _broadcast([(layouts(o)[:-2], sizes_of(o)[:-2]) for o in (query, key, value)], rank - 2)
    row, column = layouts(query)[-2], layouts(value)[-1]
    operands = {
        query: (*batch, row, kept(sizes_of(query)[-1])),
        key: (*batch, *(kept(extent) for extent in sizes_of(key)[-2:])),
        value: (*batch, kept(sizes_of(value)[-2]), column),
    }
    plan = Plan((*batch, row, column), operands)
    return plan if repeats(plan.result) else MIXES


def _of_matrices(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    """A function of the matrix in the last two axes."""
    source = cast(fx.Node, node.args[0])
    needed = without(layouts(source), [-2, -1])
    return unless_lost(Plan(needed, {source: needed}), "the matrix itself repeats")


def _diagonal(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    source = cast(fx.Node, node.args[0])
    if len(node.args) > 1 or node.kwargs:
        return Blocked("diag_embed of a diagonal other than the main one")
    needed = without(layouts(source), [-1])
    plan = Plan((*needed[:-1], needed[-1], needed[-1]), {source: needed})
    return unless_lost(plan, "the diagonal itself repeats")


ROWWISE: dict[Any, Rule] = by_operator(
    {
        Family.LINEAR: _linear,
        Family.TRAILING_NORM: _normalised,
        Family.ALONG: _over,
        Family.REDUCTION: _reduction,
        Family.PRODUCT: _matmul,
        Family.ADDED_PRODUCT: _added_product,
        Family.EINSUM: _einsum,
        Family.ATTENTION: _attention,
        Family.OF_MATRICES: _of_matrices,
        Family.DIAGONAL: _diagonal,
    }
)
