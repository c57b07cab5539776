"""Axes through operations that compute: products, reductions, attention, convolutions, position vectors."""

from __future__ import annotations

import torch.fx as fx

from lightint_compile.passes.analysis.grid_axes.axes import Atom, Axis, Origin, better
from lightint_compile.passes.analysis.grid_axes.rules import Known, Lookup, Result, rule
from lightint_compile.passes.ir.op_arguments import argument, sizes_of, takes, tensors
from lightint_compile.passes.ir.sizes import same


@rule("aten::linear")
def linear(node: fx.Node, of: Lookup) -> Result:
    """Rows stay, features are new."""
    return [*of(tensors(node)[0])[:-1], None]


@rule("aten::matmul", "aten::bmm", "aten::mm", "aten::baddbmm", "aten::addmm")
def matmul(node: fx.Node, of: Lookup) -> Result:
    """Batch axes broadcast, rows come from the left operand, columns from the right."""
    left, right = (of(source) for source in tensors(node)[-2:])
    rank = len(sizes_of(node))
    if len(left) < 2 or len(right) < 2:
        return [None] * rank
    batch: Known = [None] * (rank - 2)
    for source in tensors(node)[-2:]:
        axes, sizes = of(source), sizes_of(source)
        for back in range(3, len(axes) + 1):
            if same(sizes[-back], sizes_of(node)[-back]):
                old = batch[-back + 2]
                batch[-back + 2] = axes[-back] if old is None else better(old, axes[-back])
    return [*batch, left[-2], right[-1]]


@rule("aten::einsum")
def einsum(node: fx.Node, of: Lookup) -> Result:
    """Each letter of the output means what the operand that knows most of it says."""
    inputs, _, output = str(argument(node, "equation")).replace(" ", "").partition("->")
    letters: dict[str, Axis] = {}
    for names, source in zip(inputs.split(","), argument(node, "tensors"), strict=True):
        for letter, axis in zip(names, of(source), strict=True):
            letters[letter] = better(letters[letter], axis) if letter in letters else axis
    return [letters.get(letter) for letter in output]


@rule("aten::outer")
def outer(node: fx.Node, of: Lookup) -> Result:
    """A product of two vectors."""
    left, right = tensors(node)[0], tensors(node)[-1]
    return [of(left)[0], of(right)[0]]


@rule("aten::arange")
def arange(node: fx.Node, of: Lookup) -> Result:
    """Positions along one axis; three of them multiplied make the grid of a position table."""
    return [(Atom(sizes_of(node)[0], role="position", origin=Origin(node.name, 0, 1)),)]


@rule("aten::meshgrid")
def meshgrid(node: fx.Node, of: Lookup) -> Result:
    """Every output has one axis for each input; ``xy`` swaps the first two."""
    axes: Known = [of(source)[0] for source in argument(node, "tensors")]
    if takes(node, "indexing") and argument(node, "indexing") == "xy":
        axes[:2] = axes[1::-1]
    return [list(axes) for _ in node.meta["val"]]


@rule(
    "aten::mean",
    "aten::sum",
    "aten::amax",
    "aten::amin",
    "aten::var",
    "aten::std",
    "aten::all",
    "aten::any",
    "aten::logsumexp",
    "aten::linalg_vector_norm",
    "aten::norm",
    "aten::argmax",
    "aten::argmin",
    "aten::prod",
)
def reduce(node: fx.Node, of: Lookup) -> Result:
    """Reduced axes go, or become one."""
    axes = of(tensors(node)[0])
    dims = argument(node, "dim") if takes(node, "dim") else None
    if dims is None or dims == []:
        return [None] * len(sizes_of(node))
    gone = {dim % max(len(axes), 1) for dim in ([dims] if isinstance(dims, int) else dims)}
    keep = takes(node, "keepdim") and bool(argument(node, "keepdim"))
    return [() if number in gone else axis for number, axis in enumerate(axes) if keep or number not in gone]


@rule("aten::scaled_dot_product_attention")
def attention(node: fx.Node, of: Lookup) -> Result:
    """Queries keep their place, features come from the values."""
    return [*of(argument(node, "query"))[:-1], of(argument(node, "value"))[-1]]


_ROLES = ("frames", "height", "width")


@rule("aten::conv3d", "aten::conv_transpose3d", "aten::avg_pool3d", "aten::max_pool3d", "aten::adaptive_avg_pool3d")
def volume(node: fx.Node, of: Lookup) -> Result:
    """A convolution or pooling over a volume says which axes are frames, height and width: the surest seed."""
    return _spatial(node, of, 3)


@rule("aten::conv2d", "aten::conv_transpose2d", "aten::avg_pool2d", "aten::max_pool2d", "aten::adaptive_avg_pool2d")
def plane(node: fx.Node, of: Lookup) -> Result:
    """A convolution over a plane says which axes are height and width."""
    return _spatial(node, of, 2)


def _spatial(node: fx.Node, of: Lookup, count: int) -> Result:
    axes, shape = of(tensors(node)[0]), sizes_of(node)
    result: Known = [*axes[: -count - 1], None]
    for number in range(len(shape) - count, len(shape)):
        role = _ROLES[number - len(shape)]
        seed = (Atom(shape[number], role=role, origin=Origin(node.name, number, len(shape))),)
        keeps = any(atom.role for atom in axes[number]) and same(sizes_of(tensors(node)[0])[number], shape[number])
        result.append(axes[number] if keeps else seed)
    return result
