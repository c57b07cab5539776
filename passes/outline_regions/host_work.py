"""Small work on the host in a program that runs on an accelerator: position tables, counters, numbers of a schedule.

A compiler of regions would have it written in C++ and built, which takes longer than all that it saves. It is cut into
pieces of its own, which run operator by operator, up to the copies onto the accelerator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.fx as fx
import torch.utils._pytree as pytree

from lightint_compile.passes.ir.effects import is_pure
from lightint_compile.passes.ir.flops import bytes_of_value
from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.ir.memory_sharing import alias_source
from lightint_compile.passes.ir.node_queries import MEMO, is_movable, is_scalar

aten = torch.ops.aten

ON_HOST = "on_host"
"""The mark of nodes that run on the host, operator by operator."""

MOST_BYTES = 16 << 20
"""What is made in one connected piece: more than this is worth a compiler on the host too."""

_PICKS = {aten.index.Tensor, aten.index_put.default, aten.copy.default, aten.slice_scatter.default}
"""Operators on the accelerator that take an operand of the host's. Inductor makes such operands there itself."""


def mark_host_work(order: Sequence[fx.Node]) -> None:
    """Set ``meta["on_host"]`` on the nodes of small connected pieces of host work, and on the copies of their results.

    Left to the compiler is what it makes on the accelerator itself: constants of the host, and what is computed of
    them, where nothing but copies and picks reads them there. What is kept between calls is made once, and marked.
    """
    if not any(map(_on_accelerator, order)):
        return
    host: dict[fx.Node, None] = {}
    for node in order:
        if _is_of_host(node) and not _reads_accelerator(node) and is_movable(node) and is_pure(node):
            host[node] = None
    for piece in _connected(host):
        if _is_worth_it(piece, host):
            copies = [user for node in piece for user in node.users if user not in host and _is_copy(user, host)]
            for node in (*piece, *(copy for copy in copies if copy.meta.get(MEMO) == piece[0].meta.get(MEMO))):
                node.meta[ON_HOST] = True


def runs_on_host(nodes: Sequence[fx.Node]) -> bool:
    """Whether all that ``nodes`` compute is marked."""
    made = [node for node in nodes if not is_scalar(node)]
    return bool(made) and all(node.meta.get(ON_HOST) for node in made)


def _tensors(node: fx.Node) -> list[torch.Tensor]:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return [value]
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _on_accelerator(node: fx.Node) -> bool:
    return any(tensor.device.type != "cpu" for tensor in _tensors(node))


def _reads_accelerator(node: fx.Node) -> bool:
    return any(map(_on_accelerator, node.all_input_nodes))


def _is_of_host(node: fx.Node) -> bool:
    return bool(_tensors(node)) and not _on_accelerator(node)


def _is_copy(node: fx.Node, host: Mapping[fx.Node, None]) -> bool:
    """Whether a node brings a value of the host's to the accelerator and reads nothing else."""
    sources = [source for source in node.all_input_nodes if not is_scalar(source)]
    return is_movable(node) and is_pure(node) and _on_accelerator(node) and all(source in host for source in sources)


def _connected(host: Mapping[fx.Node, None]) -> Iterator[list[fx.Node]]:
    """Nodes of one mark that hang together, in order."""
    position = {node: place for place, node in enumerate(host)}
    seen: set[fx.Node] = set()

    def beside(node: fx.Node) -> Iterator[fx.Node]:
        for other in (*node.all_input_nodes, *node.users):
            if other in host and other.meta.get(MEMO) == node.meta.get(MEMO):
                yield other

    for node in host:
        if node not in seen:
            piece = reached([node], beside)
            seen |= piece
            yield sorted(piece, key=position.__getitem__)


def _is_worth_it(piece: Sequence[fx.Node], host: Mapping[fx.Node, None]) -> bool:
    if all(alias_source(node) is not None for node in piece):
        return False
    if sum(bytes_of_value(node.meta.get("val")) for node in piece) > MOST_BYTES:
        return False
    return piece[0].meta.get(MEMO) is not None or _stays_on_host(piece, host)


def _stays_on_host(piece: Sequence[fx.Node], host: Mapping[fx.Node, None]) -> bool:
    """Whether a compiler would have to compute a piece on the host: it reads tensors there, or is read there."""
    inside = set(piece)
    outside = [s for node in piece for s in node.all_input_nodes if s not in inside and not is_scalar(s)]
    readers = [user for node in piece for user in node.users if user not in inside]
    return bool(outside) or any(not (_is_copy(user, host) or user.target in _PICKS) for user in readers)
