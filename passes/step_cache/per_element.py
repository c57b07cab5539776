"""Guarded steps of a batch whose elements differ: both branch bodies again, for one element of the batch.

``lightint_each(reused, reuse, compute, reuse_row, compute_row, splits, joins, operands)`` is ``cond`` for a batch:
where all elements agree it is ``cond`` on the first two sides; where they do not, each element's rows of the operands
go through the side that it needs, and the results are joined. Both kinds of sides return fresh tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.fx as fx
from torch._ops import HigherOrderOperator

from lightint_compile.passes.analysis.axes.factors import Layout, Place, batch, count, place_of, shared
from lightint_compile.passes.analysis.batch_elements.flow import Flows
from lightint_compile.passes.analysis.batch_elements.rows import Refused, Rows
from lightint_compile.passes.ir.fake_values import hint_of, shape_of, size_of
from lightint_compile.passes.ir.op_arguments import sizes_of
from lightint_compile.passes.ir.program import InputKind, Program, tensor_of


class _Each(HigherOrderOperator):
    """The operator; a driver calls its own implementation instead."""

    def __init__(self) -> None:
        super().__init__("lightint_each")

    def __call__(self, *args: object, **kwargs: object) -> object:
        return super().__call__(*args, **kwargs)


EACH = _Each()

Split = tuple[int, int] | tuple[()] | None
"""Of an operand: on which axis, and inside of how many values, the elements lie; empty for a number, of which each
element may have its own; ``None`` for what all share."""

Join = tuple[int, tuple[int, ...]] | None
"""Of a result: on which axis the elements lie, and its memory order; ``None`` for a number."""


@dataclass(frozen=True)
class SidesOfOne:
    """Both sides of a step for one element.

    Attributes:
        reuse, compute: the sides.
        splits: how each operand is split into elements.
        joins: how each result is put together.
    """

    reuse: fx.GraphModule
    compute: fx.GraphModule
    splits: tuple[Split, ...]
    joins: tuple[Join, ...]


class Apart:
    """Makes the sides for one element of every guarded step of a program whose batch is not one.

    Args:
        batch_of: a value [B, ...] of the loop, whose first axis is the batch.
    """

    def __init__(self, program: Program, batch_of: fx.Node) -> None:
        root, tensor = program.graph_module, tensor_of(batch_of)
        assert tensor is not None
        size = size_of(tensor.shape[0])
        self._flows = Flows(root)
        self._flow = self._flows.of(root, [_input(program, node, size) for node in program.placeholders()])
        self._rows = Rows(root, self._flows, tensor.shape[0])
        if not count(self._flow.layout(batch_of)):
            raise Refused(*self._origin(batch_of))

    def check_watched(self, nodes: Sequence[fx.Node]) -> None:
        """Raise :class:`Refused` unless each of ``nodes`` is [B, ...]: drift is measured element by element."""
        for node in nodes:
            if place_of(self._flow.layout(node)) != Place(0, 1, 1):
                raise Refused(*self._origin(node))

    def sides(
        self, reuse: fx.GraphModule, compute: fx.GraphModule, operands: Sequence[fx.Node]
    ) -> tuple[SidesOfOne, tuple[Layout, ...]]:
        """The sides of a step for one element, and what is known of the step's results.

        Raises:
            Refused: elements meet in one of the sides.
        """
        inputs = list(map(self._flow.layout, operands))
        blamed = [self._flow.blamed.get(node) for node in operands]
        flows = [self._flows.of(side, inputs, blamed) for side in (reuse, compute)]
        rows = self._rows.graph(reuse, flows[0]), self._rows.graph(compute, flows[1])
        results = list(compute.graph.output_node().args[0])  # type: ignore[arg-type]
        joins = []
        for node, held, computed in zip(results, flows[0].results, flows[1].results, strict=True):
            assert isinstance(node, fx.Node)
            place = place_of(computed)
            if place_of(held) != place:
                raise Refused(node, f"{node.name}: a reused step and a computed one give the batch in different places")
            joins.append(_join(node, place))
        splits = tuple(_split(node, layout) for node, layout in zip(operands, inputs, strict=True))
        return SidesOfOne(*rows, splits, tuple(joins)), flows[1].results

    def learn(self, known: Mapping[fx.Node, Layout]) -> None:
        """What is known of nodes that take the place of others."""
        self._flow.known.update({node: (layout,) for node, layout in known.items()})

    def _origin(self, node: fx.Node) -> tuple[fx.Node, str]:
        """Why the first axis of ``node`` is not known to be the batch."""
        why = self._flow.blamed.get(node)
        return node, f"{node.name} does not have the batch on its first axis" if why is None else why.reason


def _input(program: Program, node: fx.Node, size: object) -> Layout:
    """An input with the batch in front is taken to have elements: what is computed from it says whether that holds."""
    tensor = tensor_of(node)
    layout = () if tensor is None else shared(shape_of(tensor))
    if not layout or program.input_of(node).kind is not InputKind.TENSOR or sizes_of(node)[0] != size:
        return layout
    return (batch(sizes_of(node)[0]), *layout[1:])


def _split(node: fx.Node, layout: Layout) -> Split:
    place, tensor = place_of(layout), tensor_of(node)
    if place is None:
        return () if tensor is not None and tensor.dim() == 0 else None
    assert isinstance(place.outer, int)
    return place.axis, place.outer


def _join(node: fx.Node, place: Place | None) -> Join:
    tensor = tensor_of(node)
    assert tensor is not None
    if place is None:
        if tensor.dim():
            raise Refused(node, f"{node.name}: a result of the step belongs to no element of the batch")
        return None
    if place.outer != 1:
        raise Refused(node, f"{node.name}: a result of the step has the batch inside of other values")
    return place.axis, memory_order(tensor)


def memory_order(tensor: torch.Tensor) -> tuple[int, ...]:
    """The axes of a fake tensor in memory order, the outermost first."""
    strides = [hint_of(stride) for stride in tensor.stride()]
    return tuple(sorted(range(tensor.dim()), key=lambda dim: -strides[dim]))
