"""Movements of operators that compute: elementwise, products, norms, reductions, convolutions."""

from __future__ import annotations

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.axes.movement import (
    Across,
    Along,
    Movement,
    New,
    Read,
    Ref,
    Way,
    Window,
    moves,
)
from lightint_compile.passes.analysis.axes.moving import (
    across,
    aligned,
    contracted,
    kept,
    operand,
    operands,
    whole,
    wide,
)
from lightint_compile.passes.ir.fake_values import size_of
from lightint_compile.passes.ir.op_arguments import (
    argument,
    dimension,
    dimensions,
    einsum_of,
    rank_of,
    results_in,
    sizes_of,
    takes,
    tensors,
)
from lightint_compile.passes.ir.op_families import COPIES, Family
from lightint_compile.passes.ir.sizes import same

aten = torch.ops.aten


def pointwise(node: fx.Node) -> Movement:
    """Operands are broadcast together."""
    return Movement((aligned(tensors(node), rank_of(node)),), computes=node.target not in COPIES)


@moves(aten.copy.default)
def copied_over(node: fx.Node) -> Movement:
    """Elementwise, but the first operand has the size of the result: it is not broadcast."""
    return pointwise(node)._replace(stretches=False)


@moves(aten.type_as.default)
def like_another(node: fx.Node) -> Movement:
    """Elementwise in the first operand; of the other the dtype alone counts."""
    return Movement((kept(operand(node)),))


@moves(Family.LINEAR)
def linear(node: fx.Node) -> Movement:
    """Rows stay, features are new."""
    source, *weights = operands(node)
    ways = kept(source)
    features = Read((Ref(source, len(ways) - 1),), "linear reads across {}, which is its feature axis")
    return Movement(((*ways[:-1], New()),), (features, *whole(weights)))


@moves(Family.TRAILING_NORM, Family.GROUP_NORM, aten.batch_norm.default)
def norm(node: fx.Node) -> Movement:
    """Statistics over some of the last axes, over everything but the batch, or over the batch as well."""
    source, *weights = operands(node)
    trailing = rank_of(source) - (node.target is not aten.batch_norm.default)
    if takes(node, "normalized_shape"):
        trailing = len(argument(node, "normalized_shape"))
    return across(source, trailing, "the norm's statistics run over {}", weights)


@moves(Family.ALONG)
def along(node: fx.Node) -> Movement:
    """softmax and cumsum."""
    source = operand(node)
    ways = list(kept(source))
    if not ways:
        return Movement(((),))
    ref = Ref(source, dimension(node, len(ways)))
    ways[ref.axis] = Across(ref)
    return Movement((tuple(ways),), (Read((ref,), "it runs along {}"),))


@moves(Family.REDUCTION)
def reduction(node: fx.Node) -> Movement:
    """Reduced axes go, or become one."""
    source = operand(node)
    ways = kept(source)
    dims = dimensions(node, len(ways)) if takes(node, "dim") else list(range(len(ways)))
    keeps = rank_of(node) == len(ways)
    output = tuple(Along() if axis in dims else way for axis, way in enumerate(ways) if keeps or axis not in dims)
    return Movement((output,), tuple(Read((Ref(source, axis),), "it reduces over {}") for axis in dims))


@moves(Family.OF_MATRICES)
def of_matrices(node: fx.Node) -> Movement:
    """A function of the matrix in the last two axes."""
    return across(operand(node), 2, "it reads all of the matrix: {}")


@moves(Family.DIAGONAL)
def diagonal(node: fx.Node) -> Movement | None:
    """A vector as the main diagonal of a matrix."""
    if len(node.args) > 1 or node.kwargs:
        return None
    source = operand(node)
    ways = kept(source)
    ref = Ref(source, len(ways) - 1)
    return Movement(((*ways[:-1], Across(ref), Across(ref)),), (Read((ref,), "the diagonal itself is {}"),))


@moves(Family.PRODUCT, Family.ADDED_PRODUCT, Family.EINSUM, aten.outer.default)
def product(node: fx.Node) -> Movement:
    """Matrix products and einsums; what is added to one is broadcast."""
    given, result = einsum_of(node)
    if node.target in Family.ADDED_PRODUCT.value:
        added = operand(node)
        given.append((result[len(result) - rank_of(added) :], added))
    ways, reads = contracted(given, result)
    return Movement((ways,), reads, stretches=node.target is aten.matmul.default)


@moves(aten._scaled_mm.default)
def scaled_product(node: fx.Node) -> Movement:
    """A matrix product whose operands have scales: of rows and columns, of blocks, or one for all."""
    left, right, rows, columns, *added = tensors(node)
    letters = {"M": sizes_of(left)[0], "N": sizes_of(right)[1]}

    def labels(scales: fx.Node, names: str) -> str:
        sizes = sizes_of(scales)
        own = zip(names[len(names) - len(sizes) :], sizes, strict=True)
        return "".join(name if name in letters and same(size, letters[name]) else name.lower() for name, size in own)

    given = [("MX", left), ("XN", right), (labels(rows, "Ma"), rows), (labels(columns, "bN"), columns)]
    ways, reads = contracted([*given, *((labels(each, "N"), each) for each in added)], "MN")
    return Movement((ways,), reads, stretches=False)


@moves(Family.CONVOLUTION, Family.POOLING)
def windows(node: fx.Node) -> Movement:
    """The batch stays, and the last axes are windows; channels are new, or each is pooled by itself."""
    source, *weights = operands(node)
    spatial = rank_of(weights[0]) - 2 if weights else 3 if "3d" in str(node.target) else 2
    before, refs = kept(source)[:-spatial], [Ref(source, axis) for axis in range(rank_of(source))]
    reads = tuple(Read((ref,), "its windows lie along {}") for ref in refs[-spatial:])
    if weights:
        before, reads = (*before[:-1], New()), (Read((refs[-spatial - 1],)), *whole(weights), *reads)
    return Movement(((*before, *map(Window, refs[-spatial:])),), reads)


def of_own_operators(node: fx.Node) -> Movement:
    """Operators of this project: all operands have the batch in front, and its entries are treated one by one.

    What else the result has is what the first operand has, where the sizes are equal.
    """
    given = [source for source in tensors(node) if sizes_of(source)]
    batch = Along(wide([Ref(source, 0) for source in given]))
    first, *_ = given
    reads = tuple(Read((Ref(source, axis),)) for source in given for axis in range(1, rank_of(source)))
    outputs = [(batch, *(_like(first, each, axis) for axis in range(1, each.dim()))) for each in results_in(node)]
    return Movement(tuple(outputs), reads, stretches=False)


def _like(first: fx.Node, result: torch.Tensor, axis: int) -> Way:
    alike = rank_of(first) == result.dim() and same(sizes_of(first)[axis], size_of(result.shape[axis]))
    return Across(Ref(first, axis)) if alike else New()
