"""Movements of operators that compute: elementwise, products, norms, reductions, convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

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
from lightint_compile.passes.analysis.axes.moving import across, aligned, kept, operand, operands, refs_of, whole, wide
from lightint_compile.passes.ir.op_arguments import (
    argument,
    dimension,
    dimensions,
    einsum_of,
    rank_of,
    sizes_of,
    takes,
    tensors,
)
from lightint_compile.passes.ir.op_families import COPIES, Family

aten = torch.ops.aten


def pointwise(node: fx.Node) -> Movement:
    """Operands are broadcast together."""
    return Movement((aligned(tensors(node), rank_of(node)),), computes=node.target not in COPIES)


@moves(aten.copy.default)
def copied_over(node: fx.Node) -> Movement:
    """Elementwise, but the first operand has the size of the result: it is not broadcast."""
    return replace(pointwise(node), stretches=False)


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


@moves(Family.TRAILING_NORM)
def trailing_norm(node: fx.Node) -> Movement:
    """layer_norm and rms_norm."""
    source, *weights = operands(node)
    trailing = len(cast(list[int], node.args[1]))
    return across(source, trailing, "the norm's statistics run over {}", weights)


@moves(Family.GROUP_NORM)
def grouped_norm(node: fx.Node) -> Movement:
    """Statistics over everything but the batch."""
    source, *weights = operands(node)
    return across(source, rank_of(source) - 1, "the norm's statistics run over {}", weights)


@moves(aten.batch_norm.default)
def batch_norm(node: fx.Node) -> Movement:
    """Statistics over everything, the batch among it."""
    source, *weights = operands(node)
    return across(source, rank_of(source), "the norm's statistics run over {}", weights)


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


@moves(Family.PRODUCT)
def product(node: fx.Node) -> Movement:
    """matmul, mm and bmm: leading axes are broadcast, rows of the left and columns of the right are free."""
    left, right = cast(list[fx.Node], node.args[:2])
    return _product(node, left, right, stretches=node.target is aten.matmul.default)


@moves(Family.ADDED_PRODUCT)
def added_product(node: fx.Node) -> Movement:
    """addmm and baddbmm: the product is broadcast with what is added to it."""
    added, left, right = cast(list[fx.Node], node.args[:3])
    found = _product(node, left, right, stretches=False)
    (output,) = found.outputs
    more = aligned([added], len(output))
    ways = tuple(
        Along(wide([*cast(Along, way).refs, *cast(Along, own).refs])) for way, own in zip(output, more, strict=True)
    )
    return Movement((ways,), found.reads, stretches=False)


def _product(node: fx.Node, left: fx.Node, right: fx.Node, *, stretches: bool) -> Movement:
    ranks = {source: rank_of(source) for source in (left, right)}
    leading = [letters[:-2] for letters in map(kept, (left, right))]
    batch = _leading({left: leading[0], right: leading[1]}, max(map(len, leading)))
    rows = kept(left)[-2:-1] if ranks[left] > 1 else ()
    columns = kept(right)[-1:] if ranks[right] > 1 else ()
    summed = Read((Ref(left, ranks[left] - 1), Ref(right, max(ranks[right] - 2, 0))))
    return Movement(((*batch, *rows, *columns),), (summed,), stretches=stretches)


def _leading(operands: Mapping[fx.Node, tuple[Way, ...]], rank: int) -> tuple[Way, ...]:
    """Leading axes broadcast together."""
    found: list[Way] = []
    for back in range(rank, 0, -1):
        refs = [refs_of(ways[-back])[0] for ways in operands.values() if len(ways) >= back]
        found.append(Along(wide(refs)))
    return tuple(found)


@moves(aten.outer.default)
def outer(node: fx.Node) -> Movement:
    """A product of two vectors."""
    left, right = cast(list[fx.Node], node.args[:2])
    return Movement(((*kept(left), *kept(right)),))


@moves(Family.EINSUM)
def einsum(node: fx.Node) -> Movement:
    """A letter means one axis in all operands; one that the result lacks is summed."""
    equation = einsum_of(node)
    letters: dict[str, list[Ref]] = {}
    for labels, source in equation.operands:
        for axis, letter in enumerate(labels):
            letters.setdefault(letter, []).append(Ref(source, axis))
    output = tuple(Along(wide(letters[letter])) for letter in equation.result)
    summed = (Read(tuple(refs)) for letter, refs in letters.items() if letter not in equation.result)
    return Movement((output,), tuple(summed), stretches=False)


@moves(Family.CONVOLUTION)
def convolution(node: fx.Node) -> Movement:
    """Channels are new, the batch stays, and the other axes are windows."""
    source, *weights = operands(node)
    spatial = rank_of(argument(node, "weight")) - 2
    channels = Read((Ref(source, rank_of(source) - spatial - 1),))
    return _spatial(source, spatial, New(), (channels, *whole(weights)))


@moves(Family.POOLING)
def pooling(node: fx.Node) -> Movement:
    """Every channel by itself, in windows."""
    source = operand(node)
    spatial = 3 if "3d" in str(node.target) else 2
    return _spatial(source, spatial, kept(source)[-spatial - 1], ())


def _spatial(source: fx.Node, spatial: int, channels: Way, reads: tuple[Read, ...]) -> Movement:
    refs = [Ref(source, axis) for axis in range(rank_of(source))]
    windows = tuple(map(Window, refs[-spatial:]))
    seen = tuple(Read((ref,), "its windows lie along {}") for ref in refs[-spatial:])
    return Movement(((*kept(source)[: -spatial - 1], channels, *windows),), (*reads, *seen))


def of_own_operators(node: fx.Node) -> Movement:
    """Operators of this project: all operands have the batch in front, and its entries are treated one by one.

    What else the result has is what the first operand has, where the sizes are equal.
    """
    given, value = [source for source in tensors(node) if sizes_of(source)], node.meta["val"]
    batch = Along(wide([Ref(source, 0) for source in given]))
    first, *_ = given
    reads = tuple(Read((Ref(source, axis),)) for source in given for axis in range(1, rank_of(source)))
    results = value if isinstance(value, (tuple, list)) else (value,)
    outputs = [(batch, *(_like(first, result, axis) for axis in range(1, result.dim()))) for result in results]
    return Movement(tuple(outputs), reads, stretches=False)


def _like(first: fx.Node, result: torch.Tensor, axis: int) -> Way:
    same = rank_of(first) == result.dim() and first.meta["val"].shape[axis] is result.shape[axis]
    return Across(Ref(first, axis)) if same else New()
