"""Axes through operations that move data: views, permutations, slices, concatenations, indexing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.evaluate import Size
from lightint_compile.passes.facts.axes import Atom, Axes, Axis, better, cut, fuse, join, regroup, same
from lightint_compile.passes.facts.axes import size_of as size
from lightint_compile.passes.facts.axis_rules import (
    Known,
    Lookup,
    Result,
    argument,
    axis_number,
    broadcast,
    plain,
    rule,
    shape_of,
    tensors,
)
from lightint_compile.passes.program import tensor_of


@rule("aten::view", "aten::reshape", "aten::_unsafe_view", "aten::flatten", "aten::unflatten", "aten::view_copy")
def view(node: fx.Node, of: Lookup) -> Result:
    """Axes are cut and joined along products of atoms."""
    return regroup(of(tensors(node)[0]), shape_of(node))


@rule("aten::unsqueeze")
def unsqueeze(node: fx.Node, of: Lookup) -> Result:
    """A new axis of one."""
    axes: Known = list(of(tensors(node)[0]))
    axes.insert(axis_number(node, len(axes) + 1), ())
    return axes


@rule("aten::squeeze")
def squeeze(node: fx.Node, of: Lookup) -> Result:
    """Axes of one go."""
    source = tensors(node)[0]
    axes, sizes = of(source), shape_of(source)
    names = {entry.name for entry in node.target._schema.arguments}  # type: ignore[union-attr]
    dims = argument(node, "dim") if "dim" in names else range(len(axes))
    listed = {dim % len(axes) for dim in ([dims] if isinstance(dims, int) else dims)}
    return [axis for number, axis in enumerate(axes) if not (number in listed and sizes[number] == 1)]


@rule("aten::permute")
def permute(node: fx.Node, of: Lookup) -> Result:
    """Axes change places."""
    axes = of(tensors(node)[0])
    return [axes[dim] for dim in argument(node, "dims")]


@rule("aten::transpose", "aten::t", "aten::swapaxes")
def transpose(node: fx.Node, of: Lookup) -> Result:
    """Two axes change places."""
    axes: Known = list(of(tensors(node)[0]))
    names = [entry.name for entry in node.target._schema.arguments][1:]  # type: ignore[union-attr]
    first, second = (argument(node, name) for name in names) if names else (0, -1)
    axes[first], axes[second] = axes[second], axes[first]
    return axes


@rule("aten::movedim")
def movedim(node: fx.Node, of: Lookup) -> Result:
    """One axis moves."""
    axes: Known = list(of(tensors(node)[0]))
    source, target = argument(node, "source"), argument(node, "destination")
    if not (isinstance(source, int) and isinstance(target, int)):
        return [None] * len(axes)
    axes.insert(target % len(axes), axes.pop(source))
    return axes


@rule("aten::expand")
def expand(node: fx.Node, of: Lookup) -> Result:
    """An axis of one that grows is new; the others stay."""
    return broadcast(node, of)


@rule("aten::repeat")
def repeat(node: fx.Node, of: Lookup) -> Result:
    """Repeating makes a new outer factor."""
    axes, repeats = of(tensors(node)[0]), [plain(count) for count in argument(node, "repeats")]
    padded = ((),) * (len(repeats) - len(axes)) + axes
    return [axis if count == 1 else (Atom(count), *axis) for axis, count in zip(padded, repeats, strict=True)]


@rule("aten::repeat_interleave")
def repeat_interleave(node: fx.Node, of: Lookup) -> Result:
    """Repeating each element makes a new inner factor."""
    axes: Known = list(of(tensors(node)[0]))
    count, dim = argument(node, "repeats"), argument(node, "dim")
    if dim is None or tensor_of(count) is not None:
        return [None] * len(shape_of(node))
    axes[dim] = fuse((*(axes[dim] or ()), Atom(plain(count))))
    return axes


@rule("aten::cat", "aten::concat", "aten::concatenate")
def cat(node: fx.Node, of: Lookup) -> Result:
    """The joined axis has parts; the others mean what the operand that knows most says."""
    sources = [source for source in argument(node, "tensors") if len(of(source)) == len(shape_of(node))]
    dim = axis_number(node, len(shape_of(node)))
    result = _merged([of(source) for source in sources])
    result[dim] = join([of(source)[dim] for source in sources])
    return result


@rule("aten::stack")
def stack(node: fx.Node, of: Lookup) -> Result:
    """A new axis; the others mean what the operand that knows most says."""
    result = _merged([of(source) for source in argument(node, "tensors")])
    result.insert(axis_number(node, len(result) + 1), None)
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
    dim = axis_number(node, len(axes))
    length = shape_of(source)[dim]
    start = _bound(argument(node, "start"), length, 0)
    if node.target is torch.ops.aten.slice.Tensor and plain(argument(node, "step")) != 1:
        axes[dim] = None
    else:
        axes[dim] = cut(axes[dim] or (), start, size(start + shape_of(node)[dim]))
    return axes


def _bound(value: Any, length: Size, default: Size) -> Size:
    if value is None:
        return default
    bound: Size = plain(value)
    return size(bound + length) if isinstance(bound, int) and bound < 0 else bound


@rule("aten::split", "aten::split_with_sizes", "aten::chunk", "aten::tensor_split")
def split(node: fx.Node, of: Lookup) -> Result:
    """Consecutive ranges of one axis."""
    source = tensors(node)[0]
    axes = of(source)
    dim = axis_number(node, len(axes))
    pieces: list[Known] = []
    start: Size = 0
    for value in node.meta["val"]:
        stop = size(start + size(value.shape[dim]))
        pieces.append([cut(axis, start, stop) if number == dim else axis for number, axis in enumerate(axes)])
        start = stop
    return pieces


@rule("aten::unbind")
def unbind(node: fx.Node, of: Lookup) -> Result:
    """Every slice of one axis, without it."""
    axes = of(tensors(node)[0])
    dim = axis_number(node, len(axes))
    return [[*axes[:dim], *axes[dim + 1 :]] for _ in node.meta["val"]]


@rule("aten::select")
def select(node: fx.Node, of: Lookup) -> Result:
    """One slice of one axis, without it."""
    axes: Known = list(of(tensors(node)[0]))
    del axes[axis_number(node, len(axes))]
    return axes


@rule("aten::index_select")
def index_select(node: fx.Node, of: Lookup) -> Result:
    """Picking along an axis that is one atom (the frames of a latent) keeps what it means; tokens lose their grid."""
    axes: Known = list(of(tensors(node)[0]))
    dim = axis_number(node, len(axes))
    axes[dim] = _picked(axes[dim] or (), shape_of(node)[dim])
    return axes


@rule("aten::index")
def index(node: fx.Node, of: Lookup) -> Result:
    """Advanced indexing with one integer vector is index_select; other forms make new axes."""
    axes: Known = list(of(tensors(node)[0]))
    used = [(dim, entry) for dim, entry in enumerate(argument(node, "indices")) if entry is not None]
    picker = tensor_of(used[0][1])
    if len(used) != 1 or picker is None or picker.dim() != 1 or picker.dtype == torch.bool:
        return [None] * len(shape_of(node))
    dim = used[0][0]
    axes[dim] = _picked(axes[dim] or (), shape_of(node)[dim])
    return axes


def _picked(axis: Axis, length: Size) -> Axis:
    if len(axis) == 1 and not axis[0].parts:
        return (replace(axis[0], size=length, parent=None),)
    return (Atom(length, note="tokens picked by an index"),)


@rule("aten::roll", "aten::flip")
def reorder(node: fx.Node, of: Lookup) -> Result:
    """The order along the moved axes is lost."""
    moved = {dim % len(shape_of(node)) for dim in argument(node, "dims")}
    return [None if number in moved else axis for number, axis in enumerate(of(tensors(node)[0]))]


@rule("aten::pad", "aten::constant_pad_nd")
def pad(node: fx.Node, of: Lookup) -> Result:
    """A padded axis keeps its meaning when it is one atom: padding before patchify adds rows, columns or frames."""
    axes = of(tensors(node)[0])
    result: Known = []
    for axis, old, new in zip(axes, shape_of(tensors(node)[0]), shape_of(node), strict=True):
        single = len(axis) == 1 and not axis[0].parts
        result.append(axis if same(old, new) else (replace(axis[0], size=new, parent=None),) if single else None)
    return result


@rule("aten::slice_scatter", "aten::select_scatter")
def scatter(node: fx.Node, of: Lookup) -> Result:
    """The written tensor keeps its axes, and learns from what is written into it."""
    target, source = of(tensors(node)[0]), list(of(tensors(node)[1]))
    dim = axis_number(node, len(target))
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
