"""Padding that repeats the edges, as one gather with clamped positions: it fuses with what is in front of it.

Inductor takes ``replication_pad`` apart into a gather an axis, in float32, and writes what is between them to memory,
in the order of dimensions and not of the memory: under a causal video decoder that is twice the bytes of its
activations, and a transposition behind it. A gather is read where it is used, in the dtype and the memory order of the
activations: it fuses with what is in front of it. Values are equal. Padding that is joined and stored with channels
last is a copy of rows instead (:mod:`.joined_frames`).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.lowering.region_nodes import call, size_at
from lightint_compile.passes.ir.fake_values import hint_of
from lightint_compile.passes.ir.rewriter import stored_in

aten = torch.ops.aten

REPLICATION = (aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default)


def pad_by_gather(graph: fx.Graph, node: fx.Node, made: dict[fx.Node, fx.Node]) -> fx.Node | None:
    """``node``'s input at clamped positions; ``None`` where it pads otherwise, or by nothing."""
    if not repeats_edges(node):
        return None
    source, pads = node.args[0], numbers_of(node.args[1])
    if pads is None:
        return None
    assert isinstance(source, fx.Node)
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
            along = call(graph, aten.unsqueeze.default, along, -1)
        positions.append(along)
    gathered = call(graph, aten._unsafe_index.Tensor, x, positions)
    return stored_in(_recorded_order(node), gathered, partial(call, graph))


def repeats_edges(node: fx.Node) -> bool:
    """Whether a padding repeats the edges."""
    return node.target in REPLICATION or "replicate" in node.args[2:3]


def _recorded_order(node: fx.Node) -> list[int]:
    """The axes of a value from the slowest to the fastest, as seen at capture; later views count on it."""
    strides = list(map(hint_of, node.meta["val"].stride()))
    return sorted(range(len(strides)), key=lambda axis: -strides[axis])


def numbers_of(pads: Any) -> list[int] | None:
    """How much is added on each side, from the last axis on; ``None`` where that is known in the call only."""
    return list(pads) if all(isinstance(pad, int) for pad in pads) else None


def _clamped(graph: fx.Graph, x: fx.Node, given: torch.Tensor, axis: int, pair: Sequence[int]) -> fx.Node:
    """Positions along an axis of ``x``, from in front of it to behind it, those outside moved to its edges."""
    before, behind = pair
    size = size_at(graph, x, axis, given.shape[axis])
    end, edge = _plus(graph, size, behind), _plus(graph, size, -1)
    along = call(graph, aten.arange.start, -before, end, dtype=torch.int64, device=given.device)
    return call(graph, aten.clamp.default, along, 0, edge)


def _plus(graph: fx.Graph, size: Any, number: int) -> Any:
    return size + number if isinstance(size, int) else call(graph, operator.add, size, number)
