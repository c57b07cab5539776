"""Rules of operations that compute: pointwise, products, norms, reductions, convolutions, attention."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.fx as fx

from lightint_compile.passes.elements.axes import Axis, Layout, batches, extent, place_of, plain, same
from lightint_compile.passes.elements.rules import (
    MEETS,
    Layouts,
    Mixes,
    Rowwise,
    Rule,
    Several,
    broadcast,
    fitted,
    joined,
    shape,
    tensors,
    without_elements,
)
from lightint_compile.passes.evaluate import shape_of
from lightint_compile.passes.program import tensor_of
from lightint_compile.passes.row_repeats.plan import argument, dimension, dimensions

aten = torch.ops.aten


def pointwise(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    """Operands are broadcast together; a value that is the same for all elements is read once."""
    operands = tensors(node)
    result = broadcast([of(each) for each in operands], len(shape(node)))
    if result is None:
        return MEETS
    return Rowwise(result, {each: fitted(of(each), result) for each in operands})


def _linear(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    source, *weights = cast(list[fx.Node], node.args)
    layout = of(source)
    if batches(layout[-1]) or not without_elements(weights, of):
        return MEETS
    return Rowwise((*layout[:-1], plain(shape(node)[-1])))


def _normalised(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    """layer_norm and rms_norm over trailing axes."""
    source, trailing = cast(fx.Node, node.args[0]), len(cast(list[int], node.args[1]))
    layout = of(source)
    if any(map(batches, layout[-trailing:])) or not without_elements(tensors(node)[1:], of):
        return Mixes("the norm's statistics run over the batch")
    return Rowwise((*layout[:-trailing], *map(plain, shape(node)[-trailing:])))


def _grouped_norm(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    layout = of(cast(fx.Node, node.args[0]))
    if any(map(batches, layout[1:])) or not without_elements(tensors(node)[1:], of):
        return Mixes("the norm's statistics run over the batch")
    return Rowwise((layout[0], *map(plain, shape(node)[1:])))


def _along(position: int) -> Rule:
    """An operation along one axis that keeps the shape."""

    def rule(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
        layout = of(cast(fx.Node, node.args[0]))
        dim = dimension(node, position, len(layout))
        if layout and batches(layout[dim]):
            return Mixes("it runs along the batch")
        return Rowwise(tuple(plain(extent(entry)) if axis == dim else entry for axis, entry in enumerate(layout)))

    return rule


def _reduction(position: int = 1) -> Rule:
    def rule(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
        layout = of(cast(fx.Node, node.args[0]))
        dims = dimensions(argument(node, position, "dim"), len(layout))
        if any(batches(layout[dim]) for dim in dims):
            return Mixes("it reduces over the batch")
        keeps = len(shape(node)) == len(layout)
        return Rowwise(tuple(() if dim in dims else e for dim, e in enumerate(layout) if keeps or dim not in dims))

    return rule


def _product(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    """matmul, mm and bmm: leading axes are broadcast, rows of the left and columns of the right are free."""
    left, right = cast(list[fx.Node], node.args[:2])
    if min(len(of(left)), len(of(right))) < 2:
        return Mixes("a product with a vector")
    return _multiplied(node, of, left, right)


def _added_product(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    """addmm and baddbmm."""
    added, left, right = cast(list[fx.Node], node.args[:3])
    found = _multiplied(node, of, left, right)
    if isinstance(found, Mixes):
        return found
    result = broadcast([of(added), cast(Layout, found.layout)], len(shape(node)))
    if result is None or place_of(cast(Layout, found.layout)) != place_of(result):
        return MEETS
    return Rowwise(result, {**found.operands, added: fitted(of(added), result)})


def _multiplied(node: fx.Node, of: Layouts, left: fx.Node, right: fx.Node) -> Rowwise | Mixes:
    one, other = of(left), of(right)
    leading = broadcast([one[:-2], other[:-2]], len(shape(node)) - 2)
    if leading is None or batches(one[-1]) or batches(other[-2]):
        return MEETS
    operands = {left: (*fitted(one[:-2], leading), *one[-2:]), right: (*fitted(other[:-2], leading), *other[-2:])}
    return Rowwise((*leading, one[-2], other[-1]), operands)


def _einsum(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    """A letter means one axis in all operands; one that is summed over must not be the batch."""
    equation, operands = str(node.args[0]).replace(" ", ""), cast(list[fx.Node], node.args[1])
    if "->" not in equation or "." in equation or len(set(operands)) != len(operands):
        return Mixes("an einsum without an arrow, with an ellipsis, or of a value with itself")
    inputs, output = equation.split("->")
    named = list(zip(inputs.split(","), operands, strict=True))
    if any(len(set(labels)) != len(labels) for labels, _ in named):
        return Mixes("an einsum of a diagonal")
    letters: dict[str, Axis] = {}
    for letter in {letter for labels, _ in named for letter in labels}:
        entry = joined(of(operand)[labels.index(letter)] for labels, operand in named if letter in labels)
        if entry is None or (batches(entry) and letter not in output):
            return MEETS
        letters[letter] = entry
    read = {operand: fitted(of(operand), tuple(letters[label] for label in labels)) for labels, operand in named}
    return Rowwise(tuple(letters[label] for label in output), read)


def _attention(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    """Every leading axis stays by itself; keys, and what a mask says of them, must be of one element."""
    query, key, value = cast(list[fx.Node], node.args[:3])
    mask = argument(node, 3, "attn_mask")
    sources = [query, key, value, *([mask] if mask is not None else [])]
    rank = len(shape(node))
    leading = broadcast([of(each)[:1] for each in sources if len(of(each)) == rank], 1)
    inner = [entry for each in sources for entry in (of(each)[1:] if len(of(each)) == rank else of(each))]
    if rank < 3 or leading is None or any(map(batches, inner)):
        return MEETS
    result = (leading[0], *map(plain, shape(node)[1:]))
    read = {each: (*fitted(of(each)[:1], leading), *of(each)[1:]) for each in sources if len(of(each)) == rank}
    return Rowwise(result, read)


def _own(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    """Operators of this project: all operands have the batch in front, and treat its entries one by one."""
    operands, value = tensors(node), node.meta["val"]
    leading = broadcast([of(each)[:1] for each in operands], 1)
    if leading is None or any(batches(entry) for each in operands for entry in of(each)[1:]):
        return MEETS
    results = value if isinstance(value, (tuple, list)) else (value,)
    layouts = [(leading[0], *map(plain, shape_of(result)[1:])) for result in results]
    read = {each: (*fitted(of(each)[:1], leading), *of(each)[1:]) for each in operands}
    return Rowwise(Several(layouts) if isinstance(value, (tuple, list)) else layouts[0], read)


def _convolution(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    source, weight = cast(list[fx.Node], node.args[:2])
    layout = of(source)
    if any(map(batches, layout[1:])) or not without_elements(tensors(node)[1:], of):
        return MEETS
    if len(layout) != len(shape(weight)):
        return Mixes("a convolution of one sample")
    return Rowwise((layout[0], *map(plain, shape(node)[1:])))


def _of_matrices(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    """A function of the matrix in the last two axes."""
    layout = of(cast(fx.Node, node.args[0]))
    return MEETS if any(map(batches, layout[-2:])) else Rowwise((*layout[:-2], *map(plain, shape(node)[-2:])))


def _diagonal(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    layout = of(cast(fx.Node, node.args[0]))
    if batches(layout[-1]) or len(node.args) > 1 or node.kwargs:
        return Mixes("a diagonal other than the main one, or of the batch")
    return Rowwise((*layout[:-1], *map(plain, shape(node)[-2:])))


def _filled(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    """One value everywhere."""
    return Rowwise(tuple(map(same, shape(node))))


def is_pointwise(node: fx.Node) -> bool:
    """Whether every value of the result depends on one value of each operand, after broadcasting."""
    if node.target in _LIKE_POINTWISE:
        return True
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags


_LIKE_POINTWISE: set[Any] = {
    aten.clone.default,
    aten.contiguous.default,
    aten._to_copy.default,
    aten.to.dtype,
    aten.to.device,
    aten.detach.default,
    aten.ones_like.default,
    aten.zeros_like.default,
    aten.full_like.default,
    aten.type_as.default,
    aten.masked_fill.Scalar,
    aten.where.self,
}

COMPUTING: dict[Any, Rule] = {
    aten.linear.default: _linear,
    aten.layer_norm.default: _normalised,
    aten.rms_norm.default: _normalised,
    aten.group_norm.default: _grouped_norm,
    aten.softmax.int: _along(1),
    aten.log_softmax.int: _along(1),
    aten._softmax.default: _along(1),
    aten.cumsum.default: _along(1),
    aten.mean.dim: _reduction(),
    aten.sum.dim_IntList: _reduction(),
    aten.amax.default: _reduction(),
    aten.amin.default: _reduction(),
    aten.var.correction: _reduction(),
    aten.linalg_vector_norm.default: _reduction(2),
    aten.matmul.default: _product,
    aten.mm.default: _product,
    aten.bmm.default: _product,
    aten.addmm.default: _added_product,
    aten.baddbmm.default: _added_product,
    aten.einsum.default: _einsum,
    aten.scaled_dot_product_attention.default: _attention,
    aten.conv1d.default: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv3d.default: _convolution,
    aten.linalg_inv.default: _of_matrices,
    aten.inverse.default: _of_matrices,
    aten.diag_embed.default: _diagonal,
    aten.full.default: _filled,
    aten.ones.default: _filled,
    aten.zeros.default: _filled,
}


def rule_of(node: fx.Node) -> Rule | None:
    """The rule of an operation that computes; ``None`` where there is none."""
    if getattr(node.target, "namespace", "") == "lightint":
        return _own
    found = COMPUTING.get(node.target)
    return found or (pointwise if is_pointwise(node) and tensor_of(node) is not None else None)
