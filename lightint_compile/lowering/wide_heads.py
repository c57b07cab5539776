"""Dense attention with heads wider than flash attention takes, as an operator that runs it by products.

Heads of 384 to 1,024 channels are those of video decoders. What Inductor calls for them is PyTorch's memory-efficient
operator (:mod:`lightint_compile.kernels.wide_heads` says why that is slow). Values are equal up to rounding.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.fx as fx

from lightint_compile.kernels.wide_heads import DTYPES, FEWEST, WIDEST_FLASH
from lightint_compile.lowering.region_nodes import call
from lightint_compile.passes.ir.memory_sharing import memory_order
from lightint_compile.passes.ir.op_arguments import argument
from lightint_compile.passes.ir.rewriter import stored_in


def attend_by_products(graph: fx.Graph, node: fx.Node, made: dict[fx.Node, fx.Node]) -> fx.Node | None:
    """``node``'s attention by products, in the memory order it had; ``None`` where PyTorch's own operator is kept."""
    if not _fits(node):
        return None
    operands = [made[argument(node, name)] for name in ("query", "key", "value")]
    mask, scale = argument(node, "attn_mask"), argument(node, "scale")
    masked = None if mask is None else made[mask]
    found = call(graph, torch.ops.lightint.wide_attention.default, *operands, masked, scale)
    recorded = node.meta["val"]
    order = memory_order(recorded)
    if order is None or sorted(apart := [axis for axis in order if recorded.shape[axis] != 1]) == apart:
        return found
    return stored_in(order, found, partial(call, graph))


def _fits(node: fx.Node) -> bool:
    query, key, value = (argument(node, name).meta["val"] for name in ("query", "key", "value"))
    plain = not argument(node, "is_causal") and argument(node, "dropout_p") == 0.0
    if not plain or {query.dim(), key.dim(), value.dim()} != {4} or query.dtype not in DTYPES:
        return False
    mask = argument(node, "attn_mask")
    if mask is not None and mask.meta["val"].dtype not in (torch.bool, query.dtype):
        return False
    scores = (*query.shape[:3], key.shape[2])
    if all(isinstance(size, int) for size in scores) and math.prod(scores) < FEWEST:
        return False  # the operator would hand it to PyTorch's
    wide = isinstance(query.shape[3], int) and query.shape[3] > WIDEST_FLASH
    return wide and key.shape[:2] == query.shape[:2] and value.shape[:2] == query.shape[:2]
