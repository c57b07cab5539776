"""``flex_attention`` as a call: its operands, the small graphs that change and mask scores, and its blocks."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
import torch.fx as fx

from lightint_compile.passes.ir.node_queries import graph_of
from lightint_compile.passes.ir.op_arguments import sizes_of
from lightint_compile.passes.ir.sizes import same

aten = torch.ops.aten

ONE_BLOCK = 1 << 30
"""The size of a block where PyTorch is given no mask of blocks: one block is all there is."""

_TRUE = frozenset({aten.new_ones.default, aten.ones.default, aten.full.default, aten.scalar_tensor.default})


@dataclass(frozen=True, eq=False)
class FlexCall:
    """One call.

    Attributes:
        node: the call.
        query, key, value: ``[batch, heads, tokens, head_dim]``.
        scale: what multiplies the scores.
        mask: a boolean of the numbers of batch, head, query and key, and of ``tables``.
        score: a score of these and of the score before.
        tables: tensors, and other values, that the mask reads.
        blocks: how many queries and keys a block has.
        results: nodes that read a result, by its place; the first is the attention.
    """

    node: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    scale: float
    mask: fx.GraphModule
    score: fx.GraphModule
    tables: tuple[Any, ...]
    blocks: tuple[Any, Any]
    results: dict[Any, fx.Node]

    @classmethod
    def of(cls, node: fx.Node) -> FlexCall | None:
        """How to read a node; ``None`` where it is no such call, or nothing reads the attention."""
        if node.op != "call_function" or getattr(node.target, "__name__", "") != "flex_attention":
            return None
        query, key, value, score, block_mask, scale = cast(Sequence[Any], node.args[:6])
        buffers = [*node.args[7:9], (), ()][:2]
        results = {user.args[1]: user for user in node.users if user.target is operator.getitem}
        mask, change = (graph_of(each) if isinstance(each, fx.Node) else None for each in (block_mask[-1], score))
        if 0 not in results or len(results) != len(node.users) or mask is None or change is None:
            return None
        tables = tuple(cast(Sequence[Any], buffers[1]))
        return cls(node, query, key, value, scale, mask, change, tables, tuple(block_mask[-3:-1]), results)

    @property
    def is_grouped(self) -> bool:
        """Whether several heads of queries share one of keys."""
        return not same(sizes_of(self.query)[1], sizes_of(self.key)[1])

    @property
    def changes_scores(self) -> bool:
        """Whether scores are not what the product gives."""
        (first, *_) = self.score.graph.find_nodes(op="placeholder")
        return self.score.graph.output_node().args[0] is not first

    @property
    def reads_more(self) -> bool:
        """Whether anything but the attention is read of the results."""
        return any(each.users for place, each in self.results.items() if place != 0)

    @cached_property
    def allows_all(self) -> bool:
        """Whether the mask lets every query see every key of the blocks that it may see."""
        result = self.mask.graph.output_node().args[0]
        if not isinstance(result, fx.Node) or result.target not in _TRUE:
            return False
        return result.target in (aten.new_ones.default, aten.ones.default) or result.args[-1] in (True, 1)

    @property
    def is_one_block(self) -> bool:
        """Whether there is one block of queries and one of keys, so that blocks leave nothing out."""
        sizes = zip(self.blocks, (sizes_of(each)[2] for each in (self.query, self.key)), strict=True)
        return all(
            isinstance(block, int) and (block >= ONE_BLOCK or (isinstance(size, int) and size <= block))
            for block, size in sizes
        )
