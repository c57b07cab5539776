"""Rules of operations that compute each row from that row: pointwise, linear, norms, products, reductions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.fx as fx

from lightint_compile.passes.row_repeats.layout import Axis, Layout, is_constant, kept, meet, repeats, size, without
from lightint_compile.passes.row_repeats.plan import (
    MIXES,
    Blocked,
    Layouts,
    Plan,
    Rule,
    argument,
    dimension,
    dimensions,
    is_tensor,
    others_full,
    shape,
    unless_lost,
)

aten = torch.ops.aten


def is_pointwise(node: fx.Node) -> bool:
    """Whether every element of the result depends on one element of each operand, after broadcasting."""
    target = node.target
    if target in _LIKE_POINTWISE:
        return True
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags


def pointwise(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    """Axes on which all operands repeat alike stay repeated; an operand of size one on an axis has no say there."""
    operands = [operand for operand in node.all_input_nodes if is_tensor(operand)]
    result = _broadcast([(layouts(operand), shape(operand)) for operand in operands], len(shape(node)))
    if not repeats(result):
        return MIXES if len(operands) > 1 else Blocked("its operand does not repeat")
    needed = {operand: _fitted(layouts(operand), result) for operand in operands}
    return Plan(result, needed, computes=node.target not in _COPIES)


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
    plan = Plan((*needed[:-1], kept(shape(node)[-1])), {source: needed} | others_full(node, source))
    return unless_lost(plan, "linear reads across the repeated axis, which is its feature axis")


def _normalised(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    """layer_norm and rms_norm over trailing axes."""
    source, trailing = cast(fx.Node, node.args[0]), len(cast(list[int], node.args[1]))
    needed = without(layouts(source), range(-trailing, 0))
    plan = Plan(needed, {source: needed} | others_full(node, source))
    return unless_lost(plan, "the norm's statistics run over the repeated axis")


def _over(position: int, name: str = "dim") -> Rule:
    """An operation along one axis that keeps the shape."""

    def rule(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
        source = cast(fx.Node, node.args[0])
        dim = dimension(node, position, len(layouts(source)), name=name)
        needed = without(layouts(source), [dim])
        return unless_lost(Plan(needed, {source: needed}), f"it runs along the repeated axis {dim}")

    return rule


def _reduction(position: int = 1) -> Rule:
    def rule(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
        source = cast(fx.Node, node.args[0])
        rank = len(layouts(source))
        dims = dimensions(argument(node, position, "dim"), rank)
        keeps = len(shape(node)) == rank
        needed = without(layouts(source), dims)
        axes = (() if dim in dims else entry for dim, entry in enumerate(needed) if keeps or dim not in dims)
        return unless_lost(Plan(tuple(axes), {source: needed}), "it reduces over the repeated axis")

    return rule


def _matmul(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    left, right = cast(list[fx.Node], node.args[:2])
    return _product(node, layouts, left, right)


def _addmm(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    bias, left, right = cast(list[fx.Node], node.args[:3])
    if len(shape(bias)) == 2 and shape(bias)[0] != 1:
        return Blocked("the added matrix differs in every row", mixes=True)
    return _product(node, layouts, left, right)


def _product(node: fx.Node, layouts: Layouts, left: fx.Node, right: fx.Node) -> Plan | Blocked:
    """Batch axes behave as in a pointwise operation; the rows of the left and the columns of the right are free."""
    if left is right or min(len(layouts(left)), len(layouts(right))) < 2:
        return Blocked("a product with a vector, or of a value with itself")
    first, second = without(layouts(left), [-1]), without(layouts(right), [-2])
    batch = _broadcast([(first[:-2], shape(left)[:-2]), (second[:-2], shape(right)[:-2])], len(shape(node)) - 2)
    exact = node.target is aten.bmm.default
    operands = {
        left: (*(batch if exact else _fitted(first[:-2], batch)), *first[-2:]),
        right: (*(batch if exact else _fitted(second[:-2], batch)), *second[-2:]),
    }
    plan = Plan((*batch, first[-2], second[-1]), operands | others_full(node, left, right))
    return plan if repeats(plan.result) else MIXES


def _einsum(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    """Labels of the result keep what all their operands share; a contracted label is read in full."""
    equation, operands = str(node.args[0]).replace(" ", ""), cast(list[fx.Node], node.args[1])
    if "->" not in equation or "." in equation or len(set(operands)) != len(operands):
        return Blocked("an einsum without an arrow, with an ellipsis, or of a value with itself")
    inputs, output = equation.split("->")
    named = list(zip(inputs.split(","), operands, strict=True))
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
    rank = len(shape(node))
    batch = _broadcast([(layouts(o)[:-2], shape(o)[:-2]) for o in (query, key, value)], rank - 2)
    row, column = layouts(query)[-2], layouts(value)[-1]
    operands = {
        query: (*batch, row, kept(shape(query)[-1])),
        key: (*batch, *(kept(extent) for extent in shape(key)[-2:])),
        value: (*batch, kept(shape(value)[-2]), column),
    }
    plan = Plan((*batch, row, column), operands)
    return plan if repeats(plan.result) else MIXES


def _matrix_function(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    """A function of the matrix in the last two axes."""
    source = cast(fx.Node, node.args[0])
    needed = without(layouts(source), [-2, -1])
    return unless_lost(Plan(needed, {source: needed}), "the matrix itself repeats")


def _diag_embed(node: fx.Node, layouts: Layouts) -> Plan | Blocked:
    source = cast(fx.Node, node.args[0])
    if len(node.args) > 1 or node.kwargs:
        return Blocked("diag_embed of a diagonal other than the main one")
    needed = without(layouts(source), [-1])
    plan = Plan((*needed[:-1], needed[-1], needed[-1]), {source: needed})
    return unless_lost(plan, "the diagonal itself repeats")


_COPIES = {aten.clone.default, aten.contiguous.default}

_LIKE_POINTWISE = {
    *_COPIES,
    aten._to_copy.default,
    aten.to.dtype,
    aten.to.device,
    aten.ones_like.default,
    aten.zeros_like.default,
    aten.full_like.default,
    aten.type_as.default,
}

ROWWISE: dict[Any, Rule] = {
    aten.linear.default: _linear,
    aten.layer_norm.default: _normalised,
    aten.rms_norm.default: _normalised,
    aten.softmax.int: _over(1),
    aten.log_softmax.int: _over(1),
    aten._softmax.default: _over(1),
    aten.cumsum.default: _over(1),
    aten.mean.dim: _reduction(),
    aten.sum.dim_IntList: _reduction(),
    aten.amax.default: _reduction(),
    aten.amin.default: _reduction(),
    aten.var.correction: _reduction(),
    aten.linalg_vector_norm.default: _reduction(2),
    aten.matmul.default: _matmul,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.addmm.default: _addmm,
    aten.einsum.default: _einsum,
    aten.scaled_dot_product_attention.default: _attention,
    aten.linalg_inv.default: _matrix_function,
    aten.inverse.default: _matrix_function,
    aten.diag_embed.default: _diag_embed,
}
