"""Rules of operations that compute: pointwise, products, norms, reductions, convolutions, attention."""

from __future__ import annotations

from typing import Any, cast

import torch.fx as fx

from lightint_compile.passes.analysis.batch_elements.axes import Axis, Layout, batches, extent, place_of, plain, same
from lightint_compile.passes.analysis.batch_elements.rules import (
    MEETS,
    Layouts,
    Mixes,
    Rowwise,
    Rule,
    Several,
    broadcast,
    fitted,
    joined,
    without_elements,
)
from lightint_compile.passes.ir.fake_values import shape_of
from lightint_compile.passes.ir.op_arguments import argument, dimension, dimensions, einsum_of, sizes_of, tensors
from lightint_compile.passes.ir.op_families import Family, by_operator, is_pointwise
from lightint_compile.passes.ir.program import tensor_of
from lightint_compile.passes.ir.sizes import replaced


def pointwise(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    """Operands are broadcast together; a value that is the same for all elements is read once."""
    operands = tensors(node)
    result = broadcast([of(each) for each in operands], len(sizes_of(node)))
    if result is None:
        return MEETS
    return Rowwise(result, {each: fitted(of(each), result) for each in operands})


def _linear(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    source, *weights = cast(list[fx.Node], node.args)
    layout = of(source)
    if batches(layout[-1]) or not without_elements(weights, of):
        return MEETS
    return Rowwise((*layout[:-1], plain(sizes_of(node)[-1])))


def _normalised(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    """layer_norm and rms_norm over trailing axes."""
    source, trailing = cast(fx.Node, node.args[0]), len(cast(list[int], node.args[1]))
    layout = of(source)
    if any(map(batches, layout[-trailing:])) or not without_elements(tensors(node)[1:], of):
        return Mixes("the norm's statistics run over the batch")
    return Rowwise((*layout[:-trailing], *map(plain, sizes_of(node)[-trailing:])))


def _grouped_norm(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    layout = of(cast(fx.Node, node.args[0]))
    if any(map(batches, layout[1:])) or not without_elements(tensors(node)[1:], of):
        return Mixes("the norm's statistics run over the batch")
    return Rowwise((layout[0], *map(plain, sizes_of(node)[1:])))


def _along(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    layout = of(cast(fx.Node, node.args[0]))
    if not layout:
        return Rowwise(layout)
    dim = dimension(node, len(layout))
    if batches(layout[dim]):
        return Mixes("it runs along the batch")
    return Rowwise(replaced(layout, dim, plain(extent(layout[dim]))))


def _reduction(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    layout = of(cast(fx.Node, node.args[0]))
    dims = dimensions(node, len(layout))
    if any(batches(layout[dim]) for dim in dims):
        return Mixes("it reduces over the batch")
    keeps = len(sizes_of(node)) == len(layout)
    return Rowwise(tuple(() if dim in dims else e for dim, e in enumerate(layout) if keeps or dim not in dims))


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
    result = broadcast([of(added), cast(Layout, found.layout)], len(sizes_of(node)))
    if result is None or place_of(cast(Layout, found.layout)) != place_of(result):
        return MEETS
    return Rowwise(result, {**found.operands, added: fitted(of(added), result)})


def _multiplied(node: fx.Node, of: Layouts, left: fx.Node, right: fx.Node) -> Rowwise | Mixes:
    one, other = of(left), of(right)
    leading = broadcast([one[:-2], other[:-2]], len(sizes_of(node)) - 2)
    if leading is None or batches(one[-1]) or batches(other[-2]):
        return MEETS
    operands = {left: (*fitted(one[:-2], leading), *one[-2:]), right: (*fitted(other[:-2], leading), *other[-2:])}
    return Rowwise((*leading, one[-2], other[-1]), operands)


def _einsum(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    """A letter means one axis in all operands; one that is summed over must not be the batch."""
    equation = einsum_of(node)
    if equation is None:
        return Mixes("an einsum without an arrow, with an ellipsis, or of a value with itself")
    named, output = equation
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
    mask = argument(node, "attn_mask")
    sources = [query, key, value, *([mask] if mask is not None else [])]
    rank = len(sizes_of(node))
    leading = broadcast([of(each)[:1] for each in sources if len(of(each)) == rank], 1)
    inner = [entry for each in sources for entry in (of(each)[1:] if len(of(each)) == rank else of(each))]
    if rank < 3 or leading is None or any(map(batches, inner)):
        return MEETS
    result = (leading[0], *map(plain, sizes_of(node)[1:]))
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
    if len(layout) != len(sizes_of(weight)):
        return Mixes("a convolution of one sample")
    return Rowwise((layout[0], *map(plain, sizes_of(node)[1:])))


def _of_matrices(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    """A function of the matrix in the last two axes."""
    layout = of(cast(fx.Node, node.args[0]))
    return MEETS if any(map(batches, layout[-2:])) else Rowwise((*layout[:-2], *map(plain, sizes_of(node)[-2:])))


def _diagonal(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    layout = of(cast(fx.Node, node.args[0]))
    if batches(layout[-1]) or len(node.args) > 1 or node.kwargs:
        return Mixes("a diagonal other than the main one, or of the batch")
    return Rowwise((*layout[:-1], *map(plain, sizes_of(node)[-2:])))


def _filled(node: fx.Node, of: Layouts) -> Rowwise | Mixes:
    """One value everywhere."""
    return Rowwise(tuple(map(same, sizes_of(node))))


COMPUTING: dict[Any, Rule] = by_operator(
    {
        Family.LINEAR: _linear,
        Family.TRAILING_NORM: _normalised,
        Family.GROUP_NORM: _grouped_norm,
        Family.ALONG: _along,
        Family.REDUCTION: _reduction,
        Family.PRODUCT: _product,
        Family.ADDED_PRODUCT: _added_product,
        Family.EINSUM: _einsum,
        Family.ATTENTION: _attention,
        Family.CONVOLUTION: _convolution,
        Family.OF_MATRICES: _of_matrices,
        Family.DIAGONAL: _diagonal,
        Family.FILL: _filled,
    }
)


def rule_of(node: fx.Node) -> Rule | None:
    """The rule of an operation that computes; ``None`` where there is none."""
    if getattr(node.target, "namespace", "") == "lightint":
        return _own
    found = COMPUTING.get(node.target)
    return found or (pointwise if is_pointwise(node) and tensor_of(node) is not None else None)
