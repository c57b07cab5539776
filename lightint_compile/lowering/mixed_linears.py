"""Inputs of linears in float32 over weights in bfloat16, split in the graph: the split fuses with what is in front.

The operator splits its input by itself (:mod:`lightint_compile.kernels.mixed_linear`). Written into the region, a norm
or a modulation writes the three parts instead of the float32 numbers, and linears of one input share them. An input
that was widened from 16 bits needs fewer parts: one of bfloat16, two of float16.
"""

from __future__ import annotations

import torch
import torch.fx as fx

from lightint_compile.kernels.mixed_linear import HIGH_BITS, NARROW, PARTS, WIDE
from lightint_compile.lowering.region_nodes import call
from lightint_compile.passes.ir.op_families import is_cast

aten = torch.ops.aten

SHARED = "lightint_parts"
"""The key under which an input's node holds the nodes of its parts."""


def split_linear(graph: fx.Graph, node: fx.Node, made: dict[fx.Node, fx.Node]) -> fx.Node:
    """The product of the parts of ``node``'s input with its weight."""
    given, weight, bias = node.args
    assert isinstance(given, fx.Node) and isinstance(weight, fx.Node)
    own = made[given]
    if SHARED not in own.meta:
        own.meta[SHARED] = _parts(graph, given, made)
    operands = (list(own.meta[SHARED]), made[weight], made[bias] if isinstance(bias, fx.Node) else None)
    return graph.call_function(torch.ops.lightint.linear_of_parts.default, operands)


def _parts(graph: fx.Graph, given: fx.Node, made: dict[fx.Node, fx.Node]) -> list[fx.Node]:
    source = given.args[0] if is_cast(given) else None
    before = source.meta["val"].dtype if isinstance(source, fx.Node) else None
    if before is NARROW:
        assert isinstance(source, fx.Node)
        return [made[source]]
    count = 2 if before is torch.float16 else PARTS
    rest, parts = made[given], list[fx.Node]()
    for place in range(count):
        last = place == count - 1
        part = rest if last else _high(graph, rest)
        parts.append(call(graph, aten._to_copy.default, part, dtype=NARROW))
        if not last:
            left = call(graph, aten.sub.Tensor, rest, part)
            infinite = call(graph, aten.isinf.default, rest)
            rest = call(graph, aten.masked_fill.Scalar, left, infinite, 0.0) if place == 0 else left
    return parts


def _high(graph: fx.Graph, numbers: fx.Node) -> fx.Node:
    """Numbers cut off behind the bits that bfloat16 has; a cast may stay in float32 between fused operations."""
    bits = call(graph, aten.view.dtype, numbers, torch.int32)
    return call(graph, aten.view.dtype, call(graph, aten.bitwise_and.Scalar, bits, HIGH_BITS), WIDE)
