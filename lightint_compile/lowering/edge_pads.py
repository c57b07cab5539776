"""Padding that repeats the edges, as one gather with clamped positions: it fuses with what is in front of it.

Inductor takes ``replication_pad`` apart into a gather an axis, in float32, and writes what is between them to memory,
in the order of dimensions and not of the memory: under a causal video decoder that is twice the bytes of its
activations, and a transposition behind it. A gather is read where it is used: norm, activation, padding and the joining
with earlier frames become one kernel, in the dtype and the memory order of the activations. Values are equal.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.ir.fake_values import hint_of

aten = torch.ops.aten

REPLICATION = (aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default)


def pad_by_gather(graph: fx.Graph, node: fx.Node, made: dict[fx.Node, fx.Node]) -> fx.Node | None:
    """``node``'s input at clamped positions; ``None`` where it pads otherwise, or by nothing."""
    source, pads = node.args[0], _numbers(node.args[1])
    assert isinstance(source, fx.Node)
    if pads is None or not _repeats_edges(node):
        return None
    x, given = made[source], source.meta["val"]
    sides = {given.dim() - 1 - place: pads[2 * place : 2 * place + 2] for place in range(len(pads) // 2)}
    padded = [axis for axis, pair in sides.items() if any(pair)]
    if not padded:
        return None
    first, last = min(padded), max(padded)
    positions: list[fx.Node | None] = [None] * first
    for axis in range(first, last + 1):  # without a gap: behind one, the gathered axes would come first
        along = _clamped(graph, x, given, axis, sides[axis])
        for _ in range(last - axis):
            along = graph.call_function(aten.unsqueeze.default, (along, -1))
        positions.append(along)
    gathered = graph.call_function(aten._unsafe_index.Tensor, (x, positions))
    return _laid_out(graph, gathered, node.meta["val"])


def _repeats_edges(node: fx.Node) -> bool:
    return node.target in REPLICATION or "replicate" in node.args[2:3]


def _numbers(pads: Any) -> list[int] | None:
    """How much is added on each side, from the last axis on; ``None`` where that is known in the call only."""
    return list(pads) if all(isinstance(pad, int) for pad in pads) else None


def _clamped(graph: fx.Graph, x: fx.Node, given: torch.Tensor, axis: int, pair: Sequence[int]) -> fx.Node:
    """Positions along an axis of ``x``, from in front of it to behind it, those outside moved to its edges."""
    (before, behind), device = pair, given.device
    size: Any = given.shape[axis]
    if not isinstance(size, int):
        size = graph.call_function(aten.sym_size.int, (x, axis))
    end, edge = _plus(graph, size, behind), _plus(graph, size, -1)
    along = graph.call_function(aten.arange.start, (-before, end), {"dtype": torch.int64, "device": device})
    return graph.call_function(aten.clamp.default, (along, 0, edge))


def _plus(graph: fx.Graph, size: Any, number: int) -> Any:
    return size + number if isinstance(size, int) else graph.call_function(operator.add, (size, number))


def _laid_out(graph: fx.Graph, gathered: fx.Node, recorded: torch.Tensor) -> fx.Node:
    """``gathered`` in the memory order that was recorded of the padding; later views count on it."""
    strides = [hint_of(stride) for stride in recorded.stride()]
    order = sorted(range(len(strides)), key=lambda axis: -strides[axis])
    turned = graph.call_function(aten.permute.default, (gathered, order))
    copied = graph.call_function(aten.clone.default, (turned,), {"memory_format": torch.contiguous_format})
    return graph.call_function(aten.permute.default, (copied, [order.index(axis) for axis in range(len(order))]))
