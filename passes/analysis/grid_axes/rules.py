"""How the meaning of axes follows their movement.

What is said here is checked by the caller against the recorded shape, so that a wrong guess becomes "unknown", never a
wrong grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.axes.movement import (
    Across,
    Alike,
    Along,
    Joined,
    New,
    Padded,
    Picked,
    Range,
    Ref,
    Times,
    Way,
    Window,
    Written,
)
from lightint_compile.passes.analysis.axes.table import movement_of
from lightint_compile.passes.analysis.grid_axes.axes import (
    ROLES,
    Atom,
    Axes,
    Axis,
    Origin,
    cut,
    fuse,
    join,
    knowledge,
    padded,
    regroup,
    written,
)
from lightint_compile.passes.ir.fake_values import Size, numel_hint, size_of
from lightint_compile.passes.ir.op_arguments import sizes_of, tensors
from lightint_compile.passes.ir.program import tensor_of
from lightint_compile.passes.ir.sizes import same

aten = torch.ops.aten

#: The axes of a node that was visited before.
Lookup: TypeAlias = Callable[[fx.Node], Axes]
Known: TypeAlias = list[Axis | None]


_MAY_SEED = (New, Window)


def meanings(node: fx.Node, of: Lookup) -> list[Known] | None:
    """What the axes of a call's results mean, ``None`` for an axis of which nothing is known.

    ``None`` altogether where the table of movements says nothing.
    """
    movement = movement_of(node)
    if movement is None:
        return _like_first(node, of)
    if movement.regroups is not None:
        return [regroup(of(movement.regroups), sizes_of(node))]
    return [
        [
            _seed(node, number, output, of) if isinstance(way, _MAY_SEED) else _carried(way, size, of)
            for number, (way, size) in enumerate(output)
        ]
        for output in movement.sized(node)
    ]


def _carried(way: Way, size: Size, of: Lookup) -> Axis | None:
    """What an axis means after what was done to it."""

    def at(ref: Ref) -> Axis:
        return of(ref.node)[ref.axis]

    match way:
        case Along((ref,)):
            return at(ref)
        case Along(()):
            return ()
        case Across(ref) | Alike(Ref() as ref):
            return at(ref)
        case Along(refs):
            fitting = [(at(ref), ref.node) for ref in refs if same(size_of(ref.node.meta["val"].shape[ref.axis]), size)]
            return _best(fitting) if fitting else None
        case Range(ref, start, 1):
            return cut(at(ref), start, size_of(start + size))
        case Joined(refs):
            return join([at(ref) for ref in refs])
        case Picked(ref, _, first):
            return _picked(at(ref), first, size)
        case Times(ref, copies, outside):
            return _copied(() if ref is None else at(ref), copies, outside=outside)
        case Padded(ref, before):
            return padded(at(ref), before, size)
        case Written(ref, source, start, step):
            return at(ref) if source is None or step != 1 else written(at(ref), at(source), start)
    return None


def _best(fitting: Sequence[tuple[Axis, fx.Node]]) -> Axis:
    """The axis that knows most; of two that know as much, that of the larger operand: the other is a table for it."""
    if all(axis == fitting[0][0] for axis, _ in fitting):
        return fitting[0][0]
    return max(fitting, key=lambda each: (knowledge(each[0]), numel_hint(each[1].meta["val"])))[0]


def _picked(axis: Axis, first: Size | None, length: Size) -> Axis:
    """A run of values is a slice.

    Else an axis that is one atom (the frames of a latent) keeps what it means, and tokens lose their grid.
    """
    if first is not None:
        return cut(axis, first, size_of(first + length))
    if len(axis) == 1 and not axis[0].parts:
        return (axis[0]._replace(size=length, parent=None),)
    return (Atom(length, note="tokens picked by an index"),)


def _copied(axis: Axis, copies: Size, *, outside: bool) -> Axis:
    if copies == 1:
        return axis
    return (Atom(copies), *axis) if outside else fuse((*axis, Atom(copies)))


_POSITIONS = (aten.arange.default, aten.arange.start, aten.arange.start_step)


def _seed(node: fx.Node, number: int, output: Sequence[tuple[Way, Size]], of: Lookup) -> Axis | None:
    """An axis that starts to mean something here.

    A convolution over a volume says which axes are frames, height and width, the surest seed; one over a plane says
    height and width; three position vectors multiplied make the grid of a position table.
    """
    way, size = output[number]
    if node.target in _POSITIONS:
        return (Atom(size, role="position", origin=Origin(node.name, number, len(output))),)
    if not isinstance(way, Window):
        return None
    windows = [(each, extent) for each, extent in output if isinstance(each, Window)]
    if len(windows) not in (2, 3):
        return None
    if all(_keeps(each, extent, of) for each, extent in windows):
        return of(way.ref.node)[way.ref.axis]
    return (Atom(size, role=ROLES[number - len(output)], origin=Origin(node.name, number, len(output))),)


def _keeps(way: Window, size: Size, of: Lookup) -> bool:
    """Whether a convolution leaves an axis as it is; a grid of which it leaves only some axes is a new one."""
    named = any(atom.role for atom in of(way.ref.node)[way.ref.axis])
    return named and same(sizes_of(way.ref.node)[way.ref.axis], size)


def _like_first(node: fx.Node, of: Lookup) -> list[Known] | None:
    """A custom operator whose result has the shape of its first operand is taken to keep what its axes mean."""
    name = str(getattr(getattr(node.target, "_schema", None), "name", "aten::"))
    sources = tensors(node)
    if name.startswith(("aten::", "prim")) or not sources or tensor_of(node) is None:
        return None
    shape = sizes_of(node)
    if len(shape) != len(of(sources[0])):
        return None
    pairs = zip(of(sources[0]), sizes_of(sources[0]), shape, strict=True)
    return [[axis if same(old, new) else None for axis, old, new in pairs]]
