"""Which axis of a value is that of attention heads: followed back from the operands of every attention."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.attention_sites import ATTENTION
from lightint_compile.passes.analysis.axes.movement import Along
from lightint_compile.passes.analysis.axes.table import movement_of
from lightint_compile.passes.ir.node_queries import is_element
from lightint_compile.passes.ir.op_arguments import argument, rank_of, sizes_of, tensors
from lightint_compile.passes.ir.program import tensor_of
from lightint_compile.passes.ir.sizes import product, same

_SPARSE, _POOLS = "sparse_attention", "pool_tiles"


def attends(node: fx.Node) -> bool:
    """Whether a call is attention, dense or sparse."""
    return node.target is ATTENTION or _is_ours(node, _SPARSE)


def is_attention(node: fx.Node) -> bool:
    """Whether a call attends, or prepares keys for what attends, head by head."""
    if node.target is ATTENTION:
        return min(map(rank_of, headed(node))) > 2
    return _is_ours(node, _SPARSE, _POOLS)


def _is_ours(node: fx.Node, *names: str) -> bool:
    target = node.target
    own = isinstance(target, torch._ops.OpOverload) and target.namespace == "lightint"
    return own and str(target).removeprefix("lightint.").startswith(names)


def headed(node: fx.Node) -> list[fx.Node]:
    """The operands of an attention that have heads."""
    if node.target is ATTENTION:
        return [argument(node, name) for name in ("query", "key", "value")]
    return [source for source in tensors(node) if rank_of(source) > 2]


def head_axis(source: fx.Node) -> int:
    """The axis of heads of an operand of attention, ``[batch, heads, tokens, ...]``."""
    return rank_of(source) - 3


def head_axes(graph: fx.Graph) -> dict[fx.Node, int]:
    """The axis of heads of every value from which an attention gets its operands by moving axes."""
    found: dict[fx.Node, int] = {}
    for node in reversed(graph.nodes):
        if node.op != "call_function":
            continue
        if is_attention(node):
            for source in headed(node):
                found.setdefault(source, head_axis(source))
        elif node in found:
            for source, axis in _behind(node, found[node]):
                found.setdefault(source, axis)
    return found


def _behind(node: fx.Node, axis: int) -> Iterator[tuple[fx.Node, int]]:
    if is_element(node):
        yield node.args[0], axis  # type: ignore[misc]
        return
    movement = movement_of(node)
    if movement is None:
        return
    if movement.regroups is not None:
        yield from _viewed(node, movement.regroups, axis)
        return
    ways = movement.outputs[0] if movement.outputs else ()
    way = ways[axis] if axis < len(ways) else None
    for ref in way.refs if isinstance(way, Along) else ():
        if tensor_of(ref.node) is not None:
            yield ref.node, ref.axis


def _viewed(node: fx.Node, source: fx.Node, axis: int) -> Iterator[tuple[fx.Node, int]]:
    """The axis of what is viewed that a view leaves as it is: as long, and behind as many values."""
    before, behind = sizes_of(source), sizes_of(node)
    for number, size in enumerate(before):
        if same(size, behind[axis]) and same(product(before[:number]), product(behind[:axis])) and size != 1:
            yield source, number
            return
