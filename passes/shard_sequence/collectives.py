"""The nodes that bring a value from one cut to another: a slice, a gather, an exchange.

Collectives are torch's functional ones: they take and give contiguous tensors, and a wait stands behind each. Every
rank has the same nodes in the same order; only the numbers of slices differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.axes.factors import Place
from lightint_compile.passes.ir.fake_values import Size
from lightint_compile.passes.ir.op_arguments import rank_of
from lightint_compile.passes.ir.ranks import Ranks

aten = torch.ops.aten

Call = Callable[..., fx.Node]
"""Makes a node."""


class Collectives:
    """Makes the nodes, for one rank of a group."""

    def __init__(self, ranks: Ranks, call: Call) -> None:
        import torch.distributed._functional_collectives

        self._ranks, self._call = ranks, call
        self._ops = torch.ops._c10d_functional

    def take(self, value: fx.Node, place: Place) -> fx.Node:
        """This rank's part of a value that every rank has all of; a view where it can be."""
        rank, count = self._ranks.rank, self._ranks.count
        if place.outer == 1 and isinstance(place.inner, int):
            start = rank * place.inner
            return self._call(aten.slice.Tensor, value, place.axis, start, start + place.inner)
        parts = self._split(value, place.axis, (place.outer, count, place.inner))
        part = self._call(aten.select.int, parts, place.axis + 1, rank)
        return self._call(aten.flatten.using_ints, part, place.axis, place.axis + 1)

    def gather(self, part: fx.Node, place: Place) -> fx.Node:
        """All of a value, from the parts of all ranks."""
        count = self._ranks.count
        flat = self._contiguous(self._call(aten.unsqueeze.default, part, 0))
        found = self._waited(self._ops.all_gather_into_tensor.default, flat, count, self._ranks.group)
        return self._joined(found, place)

    def exchange(self, part: fx.Node, have: Place, want: Place) -> fx.Node:
        """A value cut in another place: every rank sends each other one what that is to have."""
        count = self._ranks.count
        split = self._split(part, want.axis, (want.outer, count, want.inner))
        axes = list(range(rank_of(split)))
        front = [want.axis + 1, *(axis for axis in axes if axis != want.axis + 1)]
        ready = self._contiguous(self._call(aten.permute.default, split, front))
        ones = [1] * count
        found = self._waited(self._ops.all_to_all_single.default, ready, ones, ones, self._ranks.group)
        behind = int(have.axis > want.axis)
        joined = self._joined(found, Place(have.axis + behind, have.outer, have.inner))
        return self._call(aten.flatten.using_ints, joined, want.axis, want.axis + 1)

    def _joined(self, parts: fx.Node, place: Place) -> fx.Node:
        """Parts ``[ranks, ...]`` of all ranks as one value that is cut nowhere."""
        if place.axis == 0 and place.outer == 1:
            return self._call(aten.flatten.using_ints, parts, 0, 1)
        axis = place.axis + 1  # behind that of the ranks
        if place.outer == 1:
            order = [*range(1, axis), 0, *range(axis, rank_of(parts))]
            turned = self._call(aten.permute.default, parts, order)
            return self._call(aten.flatten.using_ints, turned, axis - 1, axis)
        split = self._split(parts, axis, (place.outer, place.inner))
        order = [*range(1, axis + 1), 0, *range(axis + 1, rank_of(split))]
        turned = self._call(aten.permute.default, split, order)
        return self._call(aten.flatten.using_ints, turned, axis - 1, axis + 1)

    def _split(self, value: fx.Node, axis: int, sizes: Sequence[Size]) -> fx.Node:
        """An axis as several; one of them may be of a size that only the call tells."""
        given = [size if isinstance(size, int) else -1 for size in sizes]
        return self._call(aten.unflatten.int, value, axis, given)

    def _waited(self, target: Any, *args: Any) -> fx.Node:
        return self._call(self._ops.wait_tensor.default, self._call(target, *args))

    def _contiguous(self, value: fx.Node) -> fx.Node:
        if value.meta["val"].is_contiguous():
            return value
        return self._call(aten.clone.default, value, memory_format=torch.contiguous_format)
