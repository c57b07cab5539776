"""Regions that sum over few elements, or for few results: there Inductor's Triton kernels may not write in place.

A kernel takes a tile at a time. Where a tile has fewer elements than the kernel has threads, Triton takes loads for
cheap: it loads an element once for the thread that sums it and once for the thread that stores it, in warps that do not
wait for each other. If the result is stored where an operand was, one warp stores while another still has to load, and
that one sums what was stored. Inductor puts a barrier in front of stores to operands that are broadcast, and of no
others (triton#1615), so that sums are wrong now and then: seen on an H200 with torch 2.11 and Triton 3.6 in a mean over
6 rows of 16 values. Of the tiles that Inductor tries there, 16 x 4 elements with 256 threads compiles to such code. By
its rules tiles are that small where few elements are summed, or for few results, and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.ir.fake_values import numel_hint
from lightint_compile.passes.ir.op_arguments import argument, takes
from lightint_compile.passes.ir.op_families import Family
from lightint_compile.passes.ir.program import tensor_of

FEW = 32
"""Elements summed, and results, up to which a tile may have fewer elements than a kernel has threads."""

APART: Mapping[str, Any] = {"inplace_buffers": False}
"""Inductor's settings under which a kernel's results have memory of their own."""


def settings_for(region: fx.GraphModule) -> Mapping[str, Any]:
    """Inductor's settings for a region that runs on CUDA, where it needs any.

    Args:
        region: with fake values. A sum along a symbolic size may be of few; results count by the sizes at hand.
    """
    return APART if any(map(has_small_tiles, region.graph.nodes)) else {}


def has_small_tiles(node: fx.Node) -> bool:
    """Whether a reduction, a norm or a softmax sums over few elements or for few results."""
    operand = tensor_of(node.args[0]) if node.op == "call_function" and node.args else None
    if operand is None or not _reduces(node):
        return False
    summed = _summed(node, operand)
    if not all(isinstance(size, int) for size in summed):
        return True
    elements = math.prod(summed)
    return elements <= FEW or numel_hint(operand) // elements <= FEW


def _summed(node: fx.Node, operand: torch.Tensor) -> Sequence[Any]:
    """The sizes along which a reducing operator runs, or their factors."""
    if node.target in Family.TRAILING_NORM.value:
        return [size.meta["val"] if isinstance(size, fx.Node) else size for size in argument(node, "normalized_shape")]
    if node.target in Family.GROUP_NORM.value:
        channels = operand.shape[1] // argument(node, "num_groups") if takes(node, "num_groups") else 1
        return [channels, *operand.shape[2:]]
    axes = argument(node, "dim") if takes(node, "dim") else None
    if axes is None or axes == []:
        return operand.shape
    return [operand.shape[axis] for axis in ([axes] if isinstance(axes, int) else axes)] if operand.dim() else ()


def _reduces(node: fx.Node) -> bool:
    is_tagged = isinstance(node.target, torch._ops.OpOverload) and torch.Tag.reduction in node.target.tags
    families = (Family.TRAILING_NORM, Family.GROUP_NORM, Family.ALONG, Family.REDUCTION)
    return is_tagged or any(node.target in family.value for family in families)
