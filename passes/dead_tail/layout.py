"""Results that are handed out lie in memory as eager's do: with the gaps that rows leave which are cut off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
import torch.fx as fx

from lightint_compile.passes.ir.fake_values import Size, hint_of, shape_of, size_of
from lightint_compile.passes.ir.program import tensor_of
from lightint_compile.passes.ir.sizes import product, same

aten = torch.ops.aten

Call = Callable[..., fx.Node]


@dataclass(frozen=True)
class Gap:
    """Behind each value of an axis, `held` elements are its own, and the next value begins after `stride`."""

    place: int
    held: int
    stride: int


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in memory.

    Attributes:
        order: its axes, the outermost in memory first.
        sizes: in that order; -1 for one that is symbolic.
        gaps: by place in that order, the outermost first.
    """

    order: tuple[int, ...]
    sizes: tuple[int, ...]
    gaps: tuple[Gap, ...]

    @classmethod
    def of(cls, node: fx.Node) -> Self | None:
        """The layout of a result; ``None`` where no dense tensor with padding is laid out like that.

        What is expanded counts as dense: it is expanded again.
        """
        value = tensor_of(node)
        assert value is not None
        sizes, strides = shape_of(value), tuple(map(size_of, value.stride()))
        long = [axis for axis, size in enumerate(sizes) if size != 1]
        if any(strides[axis] == 0 for axis in long):
            long = []
        long.sort(key=lambda axis: -hint_of(value.stride(axis)))
        order = (*(axis for axis in range(len(sizes)) if axis not in long), *long)
        gaps = _gaps([sizes[axis] for axis in long], [strides[axis] for axis in long], len(order) - len(long))
        in_order = tuple(size if isinstance(size, int) else -1 for size in (sizes[axis] for axis in order))
        if gaps is None or (gaps and (in_order.count(-1) > 1 or -1 in in_order[gaps[0].place + 1 :])):
            return None
        return cls(order, in_order, gaps)

    def lay_out(self, made: fx.Node, call: Call) -> fx.Node:
        """A dense tensor's values, laid out like that: padded, and the padding left out of the view."""
        whole = call(aten.permute.default, made, list(self.order))
        for gap in reversed(self.gaps):
            rows = call(aten.reshape.default, whole, [*self.sizes[: gap.place + 1], gap.held])
            whole = call(aten.constant_pad_nd.default, rows, [0, gap.stride - gap.held])
        for number, gap in enumerate(self.gaps):
            held = call(aten.slice.Tensor, whole, -1, 0, gap.held)
            inner = self.gaps[number + 1] if number + 1 < len(self.gaps) else None
            last = [] if inner is None else [inner.stride]
            upto = None if inner is None else inner.place + 1
            whole = call(aten.view.default, held, [*self.sizes[:upto], *last])
        return call(aten.permute.default, whole, sorted(range(len(self.order)), key=self.order.__getitem__))


def _gaps(sizes: list[Size], strides: list[Size], first: int) -> tuple[Gap, ...] | None:
    """Where the elements inside of an axis take less than its stride; ``None`` where that cannot be told."""
    found = []
    for place, stride in enumerate(strides):
        inside: Size = product([sizes[place + 1], strides[place + 1]]) if place + 1 < len(sizes) else 1
        if same(stride, inside):
            continue
        if not (isinstance(stride, int) and isinstance(inside, int) and stride > inside):
            return None
        found.append(Gap(first + place, inside, stride))
    return tuple(found)
