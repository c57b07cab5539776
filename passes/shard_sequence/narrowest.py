"""Where tokens become heads: in front of what makes operands of attention wider, where that sends less.

A model may copy queries for two kinds of positions before it attends, or widen them. What lies between the view that
makes heads and attention works head by head as well as token by token, so the exchange may stand at either end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch.fx as fx

from lightint_compile.passes.ir.flops import bytes_of_value
from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.shard_sequence.flow import Flow
from lightint_compile.passes.shard_sequence.head_axes import headed, is_attention
from lightint_compile.passes.shard_sequence.places import is_cut


def early(
    graph: fx.Graph, flow: Flow, heads: Mapping[fx.Node, int], by_tokens: Callable[[fx.Node], bool]
) -> frozenset[fx.Node]:
    """Calls that are to read heads already.

    Args:
        flow: what is known where they read tokens.
        heads: the axis of heads of values that have one.
        by_tokens: whether a value is cut by tokens in ``flow``.
    """
    found: set[fx.Node] = set()
    between = _between(graph, heads)
    for site in (site for site in flow.sites if site not in flow.rings):
        starts = [node for node in headed(site) if node in between]
        inside = reached(starts, lambda node: [source for source in node.all_input_nodes if source in between])
        moved = {node for node in inside if by_tokens(node)}
        front = {
            source for node in moved for source in node.all_input_nodes if source in heads and by_tokens(source)
        } - moved
        if front and _bytes(front) < _bytes(_exchanged((*inside, site), flow, by_tokens)):
            found |= moved
    return frozenset(found)


def _between(graph: fx.Graph, heads: Mapping[fx.Node, int]) -> set[fx.Node]:
    """Calls that take heads and that attention alone reads, or others of them."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        takes = node.op == "call_function" and node in heads and any(source in heads for source in node.all_input_nodes)
        if takes and node.users and all(user in found or is_attention(user) for user in node.users):
            found.add(node)
    return found


def _exchanged(nodes: Iterable[fx.Node], flow: Flow, by_tokens: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """Values cut by tokens of which some calls read heads."""
    reads = (item for node in nodes for item in flow.reads.get(node, {}).items())
    return {source for source, layout in reads if by_tokens(source) and is_cut(layout)}


def _bytes(nodes: Iterable[fx.Node]) -> int:
    return sum(bytes_of_value(node.meta.get("val")) for node in nodes)
