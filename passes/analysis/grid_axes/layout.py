"""Axes through operations that move data: views, permutations, slices, concatenations, indexing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.grid_axes.axes import Atom, Axes, Axis, better, cut, fuse, join, regroup
from lightint_compile.passes.analysis.grid_axes.rules import Known, Lookup, Result, broadcast, rule
from lightint_compile.passes.ir.fake_values import Size, size_of
from lightint_compile.passes.ir.op_arguments import (
    argument,
    dimension,
    permutation,
    size_argument,
    sizes_of,
    takes,
    tensors,
)
from lightint_compile.passes.ir.program import tensor_of
from lightint_compile.passes.ir.sizes import same


@rule("aten::view", "aten::reshape", "aten::_unsafe_view", "aten::flatten", "aten::unflatten", "aten::view_copy")
def view(node: fx.Node, of: Lookup) -> Result:
    """Axes are cut and joined along products of atoms."""
    return regroup(of(tensors(node)[0]), sizes_of(node))


@rule("aten::unsqueeze")
def unsqueeze(node: fx.Node, of: Lookup) -> Result:
    """A new axis of one."""
    axes: Known = list(of(tensors(node)[0]))
    axes.insert(dimension(node, len(axes) + 1), ())
    return axes


@rule("aten::squeeze")
def squeeze(node: fx.Node, of: Lookup) -> Result:
    """Axes of one go."""
    source = tensors(node)[0]
    axes, sizes = of(source), sizes_of(source)
    dims = argument(node, "dim") if takes(node, "dim") else range(len(axes))
    listed = {dim % max(len(axes), 1) for dim in ([dims] if isinstance(dims, int) else dims)}
    return [axis for number, axis in enumerate(axes) if not (number in listed and sizes[number] == 1)]


@rule("aten::permute", "aten::transpose", "aten::t", "aten::swapaxes", "aten::movedim")
def permute(node: fx.Node, of: Lookup) -> Result:
    """Axes change places."""
    axes = of(tensors(node)[0])
    return [axes[dim] for dim in permutation(node)]


@rule("aten::expand")
def expand(node: fx.Node, of: Lookup) -> Result:
    """An axis of one that grows is new; the others stay."""
    return broadcast(node, of)


@rule("aten::repeat")
def repeat(node: fx.Node, of: Lookup) -> Result:
    """Repeating makes a new outer factor."""
    axes, repeats = of(tensors(node)[0]), [size_argument(count) for count in argument(node, "repeats")]
    padded = ((),) * (len(repeats) - len(axes)) + axes
    return [axis if count == 1 else (Atom(count), *axis) for axis, count in zip(padded, repeats, strict=True)]


@rule("aten::repeat_interleave")
def repeat_interleave(node: fx.Node, of: Lookup) -> Result:
    """Repeating each element makes a new inner factor."""
    axes: Known = list(of(tensors(node)[0]))
    count, dim = argument(node, "repeats"), argument(node, "dim")
    if dim is None or tensor_of(count) is not None:
        return [None] * len(sizes_of(node))
    axes[dim] = fuse((*(axes[dim] or ()), Atom(size_argument(count))))
    return axes


@rule("aten::cat", "aten::concat", "aten::concatenate")
def cat(node: fx.Node, of: Lookup) -> Result:
    """The joined axis has parts; the others mean what the operand that knows most says."""
    sources = [source for source in argument(node, "tensors") if len(of(source)) == len(sizes_of(node))]
    dim = dimension(node, len(sizes_of(node)))
    result = _merged([of(source) for source in sources])
    result[dim] = join([of(source)[dim] for source in sources])
    return result


@rule("aten::stack")
def stack(node: fx.Node, of: Lookup) -> Result:
    """A new axis; the others mean what the operand that knows most says."""
    result = _merged([of(source) for source in argument(node, "tensors")])
    result.insert(dimension(node, len(result) + 1), None)
    return result


def _merged(operands: Sequence[Axes]) -> Known:
    result: list[Axis] = list(operands[0])
    for axes in operands[1:]:
        result = [better(old, new) for old, new in zip(result, axes, strict=True)]
    return list(result)


@rule("aten::slice", "aten::narrow")
def slice_(node: fx.Node, of: Lookup) -> Result:
    """A range of one axis."""
    source = tensors(node)[0]
    axes: Known = list(of(source))
    dim = dimension(node, len(axes))
    length = sizes_of(source)[dim]
    start = _bound(argument(node, "start"), length, 0)
    if node.target is torch.ops.aten.slice.Tensor and size_argument(argument(node, "step")) != 1:
        axes[dim] = None
    else:
        axes[dim] = cut(axes[dim] or (), start, size_of(start + sizes_of(node)[dim]))
    return axes


def _bound(value: Any, length: Size, default: Size) -> Size:
    if value is None:
        return default
    bound: Size = size_argument(value)
    return size_of(bound + length) if isinstance(bound, int) and bound < 0 else bound


@rule("aten::split", "aten::split_with_sizes", "aten::chunk", "aten::tensor_split")
def split(node: fx.Node, of: Lookup) -> Result:
    """Consecutive ranges of one axis."""
    source = tensors(node)[0]
    axes = of(source)
    dim = dimension(node, len(axes))
    pieces: list[Known] = []
    start: Size = 0
    for value in node.meta["val"]:
        stop = size_of(start + size_of(value.shape[dim]))
        pieces.append([cut(axis, start, stop) if number == dim else axis for number, axis in enumerate(axes)])
        start = stop
    return pieces


@rule("aten::unbind")
def unbind(node: fx.Node, of: Lookup) -> Result:
    """Every slice of one axis, without it."""
    axes = of(tensors(node)[0])
    dim = dimension(node, len(axes))
    return [[*axes[:dim], *axes[dim + 1 :]] for _ in node.meta["val"]]


@rule("aten::select")
def select(node: fx.Node, of: Lookup) -> Result:
    """One slice of one axis, without it."""
    axes: Known = list(of(tensors(node)[0]))
    del axes[dimension(node, len(axes))]
    return axes


@rule("aten::index_select")
def index_select(node: fx.Node, of: Lookup) -> Result:
    """Picking along an axis that is one atom (the frames of a latent) keeps what it means; tokens lose their grid."""
    axes: Known = list(of(tensors(node)[0]))
    dim = dimension(node, len(axes))
    axes[dim] = _picked(axes[dim] or (), sizes_of(node)[dim])
    return axes


@rule("aten::index")
def index(node: fx.Node, of: Lookup) -> Result:
    """Advanced indexing with one integer vector is index_select; other forms make new axes."""
    axes: Known = list(of(tensors(node)[0]))
    used = [(dim, entry) for dim, entry in enumerate(argument(node, "indices")) if entry is not None]
    picker = tensor_of(used[0][1])
    if len(used) != 1 or picker is None or picker.dim() != 1 or picker.dtype == torch.bool:
        return [None] * len(sizes_of(node))
    dim = used[0][0]
    axes[dim] = _picked(axes[dim] or (), sizes_of(node)[dim])
    return axes


def _picked(axis: Axis, length: Size) -> Axis:
    if len(axis) == 1 and not axis[0].parts:
        return (replace(axis[0], size=length, parent=None),)
    return (Atom(length, note="tokens picked by an index"),)


@rule("aten::roll", "aten::flip")
def reorder(node: fx.Node, of: Lookup) -> Result:
    """The order along the moved axes is lost."""
    moved = {dim % max(len(sizes_of(node)), 1) for dim in argument(node, "dims")}
    return [None if number in moved else axis for number, axis in enumerate(of(tensors(node)[0]))]


@rule("aten::pad", "aten::constant_pad_nd")
def pad(node: fx.Node, of: Lookup) -> Result:
    """A padded axis keeps its meaning when it is one atom: padding before patchify adds rows, columns or frames."""
    axes = of(tensors(node)[0])
    result: Known = []
    for axis, old, new in zip(axes, sizes_of(tensors(node)[0]), sizes_of(node), strict=True):
        single = len(axis) == 1 and not axis[0].parts
        result.append(axis if same(old, new) else (replace(axis[0], size=new, parent=None),) if single else None)
    return result


@rule("aten::slice_scatter", "aten::select_scatter")
def scatter(node: fx.Node, of: Lookup) -> Result:
    """The written tensor keeps its axes, and learns from what is written into it."""
    target, source = of(tensors(node)[0]), list(of(tensors(node)[1]))
    dim = dimension(node, len(target))
    if len(source) == len(target):
        source.pop(dim)
    source.insert(dim, ())
    return [old if number == dim else better(old, source[number]) for number, old in enumerate(target)]


@rule("aten::view_as_complex")
def as_complex(node: fx.Node, of: Lookup) -> Result:
    """Pairs become complex numbers: the last axis goes."""
    return of(tensors(node)[0])[:-1]


@rule("aten::view_as_real")
def as_real(node: fx.Node, of: Lookup) -> Result:
    """Complex numbers become pairs: a last axis of two comes."""
    return [*of(tensors(node)[0]), None]
