"""Which axis of a tensor is a flattened (frames, height, width) grid, and which tokens are before and after it.

Seeds: a convolution over a volume; a view and permutation of a tensor with five or more axes; a position table built
from three ``arange``; for tokens that arrive flattened, what the graph that made them says of them, or the view that
turns them back into a video at the end. From
there the meaning of axes follows the data (:mod:`~lightint_compile.passes.analysis.grid_axes.rules`). What cannot be
followed is unknown, with a reason, never a guess.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

import sympy
import torch
import torch.fx as fx
import torch.utils._pytree as pytree

from lightint_compile.passes.analysis.axes.factors import extent
from lightint_compile.passes.analysis.axes.moving import READS_NUMBERS
from lightint_compile.passes.analysis.grid_axes.axes import (
    ROLES,
    Atom,
    Axes,
    Axis,
    Origin,
    frames_of_input,
)
from lightint_compile.passes.analysis.grid_axes.following import Followed, Results
from lightint_compile.passes.analysis.grid_axes.rules import meanings
from lightint_compile.passes.analysis.past_frames import PastFrames, find_past
from lightint_compile.passes.analysis.token_axis import Grid, TokenAxis
from lightint_compile.passes.analysis.token_spans import is_volume, spans_of
from lightint_compile.passes.ir.fake_values import Size, hint_of, plain, shape_of, size_of
from lightint_compile.passes.ir.looks import Looks
from lightint_compile.passes.ir.op_arguments import pick_of, results_in, sizes_of, tensors
from lightint_compile.passes.ir.program import InputKind, Program, tensor_of
from lightint_compile.passes.ir.sizes import same

Made = tuple[tuple[int, tuple[int | None, int | str, int | str]], ...]
"""Numbers of a program's results, and (frames, height, width) of their tokens: see :func:`tokens_made`."""


@dataclass
class TokenGrid:
    """The fact: for every tensor axis, the stretches of tokens on it.

    Attributes:
        axes: what each axis of each node's tensor means.
        confirmed: seeds of grids that an output unpatchifies, so that their order is known from both ends.
        past: which inputs hold keys and values of earlier frames; their grids are among ``axes``.
    """

    axes: Mapping[fx.Node, Axes] = field(default_factory=dict)
    confirmed: frozenset[str] = frozenset()
    past: PastFrames = field(default_factory=PastFrames)

    @classmethod
    def analyse(cls, program: Program) -> Self:
        """Follow the meaning of axes through the graph; a graph without a grid gives an empty fact."""
        told = _told(program)
        axes = _follow(program, told)
        hints = _flattened_inputs(program, axes)
        if hints:
            hinted = _follow(program, {**told, **hints})
            seeds = _unpatchified(program, hinted)
            kept = {origin: grid for origin, grid in hints.items() if origin.node in seeds}
            axes, hints = (hinted if kept == hints else _follow(program, {**told, **kept}) if kept else axes), kept
        past = find_past(program, axes)
        if past.kept:
            axes = _follow(program, {**told, **hints, **past.axes(program)})
        return cls(axes, frozenset(_unpatchified(program, axes)), past)

    def of(self, node: fx.Node, axis: int) -> TokenAxis | None:
        """The stretches of one axis; ``None`` for a node that is no tensor of that rank."""
        axes = self.axes.get(node)
        if axes is None or not -len(axes) <= axis < len(axes):
            return None
        return TokenAxis(tuple(spans_of(axes[axis])))

    def grids_of(self, node: fx.Node) -> dict[int, TokenAxis]:
        """The axes of a node that hold a grid."""
        found = {number: self.of(node, number) for number in range(len(self.axes.get(node, ())))}
        return {number: axis for number, axis in found.items() if axis is not None and axis.grids}

    def holder(self, origin: Origin | None, size: Size) -> tuple[fx.Node, int] | None:
        """The first node, and its axis, where a rewrite can read the size of exactly this one axis of a grid."""
        return self._holders.get((origin, size))

    def whole(self, grid: Grid) -> tuple[fx.Node, int] | None:
        """The first node, and its axis, that is all tokens of a grid and nothing else."""
        return self._wholes.get((grid.shape, grid.origins))

    @cached_property
    def _wholes(self) -> dict[tuple[object, ...], tuple[fx.Node, int]]:
        wholes: dict[tuple[object, ...], tuple[fx.Node, int]] = {}
        for node, axes in self.axes.items():
            for number, axis in enumerate(axes):
                if len(axis) == 3 and axis[0].role == ROLES[0]:
                    key = tuple(atom.size for atom in axis), tuple(atom.origin for atom in axis)
                    wholes.setdefault(key, (node, number))
        return wholes

    @cached_property
    def _holders(self) -> dict[tuple[Origin | None, Size], tuple[fx.Node, int]]:
        holders: dict[tuple[Origin | None, Size], tuple[fx.Node, int]] = {}
        for node, axes in self.axes.items():
            for number, axis in enumerate(axes):
                if len(axis) == 1:
                    holders.setdefault((axis[0].origin, axis[0].size), _reader(node, number))
        return holders


def _reader(node: fx.Node, axis: int) -> tuple[fx.Node, int]:
    """Where the extent of an axis is read: of picked frames from the index, which is there before they are."""
    pick = pick_of(node)
    return (pick.index, 0) if pick is not None and pick.axis == axis else (node, axis)


def _follow(program: Program, hints: Mapping[Origin, Axis]) -> Followed:
    """Run every rule in order. ``hints`` are axes of inputs that are known to be grids."""
    kinds = {entry.name: entry.kind for entry in program.inputs}
    followed = Followed(program.memory(Looks))
    for node in program.graph.nodes:
        if node.op == "placeholder":
            weight = kinds.get(node.name) in (InputKind.PARAMETER, InputKind.BUFFER)
            followed.given(node, (_input_axes(node, hints, weight),))
        elif node.op != "output":
            followed.follow(node, _results, alike=node.target not in READS_NUMBERS)
    return followed


def _input_axes(node: fx.Node, hints: Mapping[Origin, Axis], weight: bool) -> Axes:
    sizes = sizes_of(node) if tensor_of(node) is not None else ()
    origins = [Origin(node.name, number, len(sizes)) for number in range(len(sizes))]
    notes = [
        "" if weight else f"axis {origin.axis} of the input {node.name}, whose grid is not known" for origin in origins
    ]
    return tuple(
        hints.get(origin, (Atom(size, origin=origin, note=note),))
        for size, origin, note in zip(sizes, origins, notes, strict=True)
    )


def _results(node: fx.Node, of: Callable[[fx.Node], Results]) -> Results:
    """What the movement of a call says; an operation or argument form that the table does not know says nothing."""
    found: Sequence[Sequence[Axis | None]] = ()
    with suppress(KeyError, IndexError, ValueError, TypeError, AttributeError, AssertionError, sympy.SympifyError):
        if node.target is operator.getitem:
            found = [of(node.args[0])[node.args[1]]]  # type: ignore[arg-type, index]
        elif node.op == "call_function":
            found = meanings(node, lambda source: of(source)[0]) or ()
    values = itertools.zip_longest(results_in(node), found)
    return tuple(
        _checked(node, result, shape_of(value)) if isinstance(value, torch.Tensor) else () for value, result in values
    )


def _checked(node: fx.Node, result: Sequence[Axis | None] | None, shape: Sequence[Size]) -> Axes:
    """The rule's axes where their products are the recorded sizes, and new axes elsewhere."""
    if result is None or len(result) != len(shape):
        result = [None] * len(shape)
    return tuple(
        [
            axis if axis is not None and same(extent(axis), size) else (_new(node, number, len(shape), size),)
            for number, (axis, size) in enumerate(zip(result, shape, strict=True))
        ]
    )


def _new(node: fx.Node, axis: int, rank: int, size: Size) -> Atom:
    name = getattr(getattr(node.target, "_schema", None), "name", node.target)
    return Atom(size, origin=Origin(node.name, axis, rank), note=f"{name} makes it".replace("aten::", ""))


# --- evidence from other graphs -------------------------------------------------------------------------------------


def _told(program: Program) -> dict[Origin, Axis]:
    """Inputs of which another graph said what grid their tokens are.

    A grid of another length says nothing. Nor does one whose frames do not divide the tokens that a program for any
    number of them was traced with: what passes compute from those would be of no whole frames.
    """
    hints: dict[Origin, Axis] = {}
    for node in program.placeholders() if program.tokens else ():
        grid, sizes = program.tokens.get(node.name), sizes_of(node) if tensor_of(node) is not None else ()
        if grid is None or len(sizes) != 3:
            continue
        origin, (frames, height, width) = Origin(node.name, 1, 3), grid
        count = plain(sympy.sympify(sizes[1]) / (height * width)) if frames is None else frames
        seen = hint_of(node.meta["val"].shape[1])
        if same(size_of(count * height * width), sizes[1]) and seen % (height * width) == 0:
            hints[origin] = frames_of_input(origin, (count, height, width))
    return hints


def tokens_made(program: Program) -> Made:
    """Results ``[batch, tokens, width]`` that are all tokens of one grid: their numbers, and the grid.

    Where sizes are symbolic the number of frames is ``None``, and height and width are Python over the symbols.
    """
    leaves = list(enumerate(pytree.tree_leaves(program.graph.output_node().args[0])))
    rows = [(number, leaf) for number, leaf in leaves if isinstance(leaf, fx.Node) and _is_rows(leaf)]
    grids = ((number, _only(program.fact(TokenGrid).of(leaf, 1))) for number, leaf in rows)
    return tuple((number, grid) for number, grid in grids if grid is not None)


def _is_rows(node: fx.Node) -> bool:
    value = tensor_of(node)
    return value is not None and value.dim() == 3


def _only(axis: TokenAxis | None) -> tuple[int | None, int | str, int | str] | None:
    """The sizes of a grid that is all of an axis."""
    if axis is None or len(axis.spans) != 1 or axis.spans[0].grid is None:
        return None
    frames, height, width = axis.spans[0].grid.shape
    plane = (size if isinstance(size, int) else str(size) for size in (height, width))
    return frames if isinstance(frames, int) else None, next(plane), next(plane)


# --- evidence from the end of the graph -------------------------------------------------------------------------------


_VIEWS = ("aten::view", "aten::reshape", "aten::unflatten")


def _flattened_inputs(program: Program, axes: Followed) -> dict[Origin, Axis]:
    """Input axes without a grid that some view cuts into three in a row, as what it cuts them into."""
    hints: dict[Origin, Axis] = {}
    given = (node for node in program.placeholders() if (value := tensor_of(node)) is not None and value.dim() == 3)
    inputs = {node.name for node in given}
    for node in program.calls():
        if not getattr(getattr(node.target, "_schema", None), "name", "").startswith(_VIEWS):
            continue
        viewed = [source for source in tensors(node)[:1] if not inputs.isdisjoint(axes.names(source))]
        for axis in axes[viewed[0]] if viewed else ():
            origin = axis[0].origin if len(axis) == 1 and not axis[0].role else None
            if origin and origin.node in inputs and origin.axis == 1 and origin not in hints:
                cut = _cut_in_three(axis[0].size, axes[node])
                hints.update({origin: frames_of_input(origin, cut)} if cut else {})
    return hints


def _cut_in_three(length: Size, axes: Axes) -> tuple[Size, Size, Size] | None:
    sizes = [extent(axis) for axis in axes]
    for first in range(len(sizes) - 2):
        frames, height, width = sizes[first : first + 3]
        if same(size_of(frames * height * width), length) and 1 not in (height, width):
            return frames, height, width
    return None


def _unpatchified(program: Program, axes: Mapping[fx.Node, Axes]) -> set[str]:
    """Seeds of the grids whose frames, height and width lead three axes of one output, in order."""
    leaves = pytree.tree_leaves(program.graph.output_node().args[0])
    return {seed for leaf in leaves if leaf in axes for seed in _leading(axes[leaf])}


def _leading(axes: Axes) -> Iterator[str]:
    heads = [atom for axis in axes for atom in [a for a in axis if a.size != 1][:1]]
    for atoms in itertools.combinations(heads, 3):
        if is_volume(atoms) and atoms[1].origin:
            yield atoms[1].origin.node
