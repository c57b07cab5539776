"""Transfers between ranks in a graph: where they start, where they are waited for, and what can be done meanwhile.

Functional collectives, and operators of their form, give a tensor that is on its way until ``wait_tensor`` of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
import torch.fx as fx

from lightint_compile.kernels.exchange import EXCHANGE
from lightint_compile.passes.ir.effects import is_pure

aten = torch.ops.aten

WAIT = "_c10d_functional.wait_tensor.default"
"""The operator that waits; a torch without process groups has none."""

_TURNS = frozenset(
    (aten.permute.default, aten.unflatten.int, aten.flatten.using_ints, aten.view.default, aten.transpose.int)
)
"""What brings the axes of what came into order: it reads nothing else."""


class Exchange(NamedTuple):
    """A transfer ``[ranks, ...]``: what is sent, the collective, and the wait for what came."""

    ready: fx.Node
    sent: fx.Node
    arrived: fx.Node


Waiting = dict[fx.Node, None]
"""What reads, by way of others or not, what an exchange brings; in the order of the graph."""


def is_wait(node: fx.Node) -> bool:
    """Whether a node waits for a transfer, its first argument."""
    return node.op == "call_function" and str(node.target) == WAIT


def waits_for_copies(node: fx.Node) -> bool:
    """Whether a node waits for an exchange by copies: such waits may be made in any order."""
    started = node.args[0] if node.args else None  # asked first: every node is asked, and names of operators are slow
    return isinstance(started, fx.Node) and started.target is EXCHANGE and is_wait(node)


def exchanges_in(graph: fx.Graph) -> Iterator[Exchange]:
    """The exchanges by copies that are started and waited for in a graph, in its order."""
    for node in graph.nodes:
        if node.target is EXCHANGE and (wait := next(filter(waits_for_copies, node.users), None)):
            yield Exchange(node.args[0], node, wait)


def groups(
    exchanges: Iterable[Exchange], fits: Callable[[Exchange, Exchange], bool]
) -> Iterator[tuple[list[Exchange], Waiting]]:
    """Runs of exchanges of which none needs what another brings, and what stands between them and does.

    Args:
        exchanges: in the order of their graph.
        fits: whether an exchange may be in the group of another one, which is its first.
    """
    group: list[Exchange] = []
    waiting: Waiting = {}
    for exchange in exchanges:
        more = _between(group, waiting, exchange) if group and fits(group[0], exchange) else None
        if more is None:
            if group:
                yield group, waiting
            group, waiting, more = [], {}, {}
        group.append(exchange)
        waiting |= more
    if group:
        yield group, waiting


def _between(group: list[Exchange], waiting: Waiting, following: Exchange) -> Waiting | None:
    """What has to wait between a group and ``following``; ``None`` where that cannot join it."""
    brought, found = {exchange.sent for exchange in group} | set(waiting), Waiting()
    node = group[-1].sent.next
    while node is not following.sent:
        if not is_pure(node) and not is_wait(node):
            return None  # a write, in front of which something else may be read
        if not brought.isdisjoint(node.all_input_nodes):
            brought.add(node)
            found[node] = None
        node = node.next
    return None if following.ready in brought else found


def move_behind(node: fx.Node, waiting: Iterable[fx.Node]) -> None:
    """Let nodes follow ``node``, in their order."""
    for each in waiting:
        node.append(each)
        node = each


def spread(graph: fx.Graph) -> None:
    """Start exchanges by copies in front of what waits for one that none of them needs, and wait as late as can be.

    Copies take no multiprocessors, so that they can be on their way while products run. Queries, keys and values of an
    attention are all on their way before the queries are waited for, and so are both results of one that attends twice
    before the first is projected. No exchange moves: what waits does, behind them, and each wait in front of its first
    reader.
    """
    exchanges = list(exchanges_in(graph))
    for group, waiting in groups(exchanges, lambda one, other: True):
        move_behind(group[-1].sent, waiting)
    places = {node: place for place, node in enumerate(graph.nodes)} if exchanges else {}
    for exchange in exchanges:
        _wait_late(exchange.arrived, places)


def _wait_late(arrived: fx.Node, places: Mapping[fx.Node, int]) -> None:
    """Move a wait, and what turns the axes of what came, in front of the first reader.

    Writes may be passed: what came is memory of its own, and whoever writes to that reads these nodes. Readers stay in
    order, as none of them is moved here.
    """
    chain = list(_chain(arrived))
    first = min(chain[-1].users, key=places.__getitem__, default=None)
    if first is not None:
        for node in chain:
            first.prepend(node)


def _chain(arrived: fx.Node) -> Iterator[fx.Node]:
    node = arrived
    yield node
    while len(node.users) == 1 and (user := next(iter(node.users))).target in _TURNS:
        yield user
        node = user
