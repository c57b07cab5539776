"""Exchanges that do not wait for each other go together: queries, keys and values of an attention are one transfer.

To start a transfer takes the host longer than to launch a kernel, and where a GPU is fast the host is what counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.fx as fx

from lightint_compile.passes.ir.effects import is_pure
from lightint_compile.passes.ir.fake_values import described
from lightint_compile.passes.ir.rewriter import Rewriter

aten = torch.ops.aten


class Exchange(NamedTuple):
    """A transfer ``[ranks, ...]``: what is sent, the collective, and the wait for what came."""

    ready: fx.Node
    sent: fx.Node
    arrived: fx.Node


def joined(exchanges: Iterable[Exchange], rewriter: Rewriter) -> int:
    """Let neighbouring exchanges of equal values go as one; how many collectives that saves.

    Args:
        exchanges: in the order of their graph, of one group.
    """
    groups = [(group, waiting) for group, waiting in _groups(exchanges) if len(group) > 1]
    for group, waiting in groups:
        _join(group, waiting, rewriter)
    return sum(len(group) - 1 for group, _ in groups)


_Waiting = dict[fx.Node, None]
"""What reads, by way of others or not, what an exchange brings; in the order of the graph."""


def _groups(exchanges: Iterable[Exchange]) -> Iterator[tuple[list[Exchange], _Waiting]]:
    """Runs of exchanges of which none needs what another brings, and what stands between them and does."""
    group: list[Exchange] = []
    waiting: _Waiting = {}
    for exchange in exchanges:
        more = _between(group, waiting, exchange) if group and _alike(group[0], exchange) else None
        if more is None:
            yield group, waiting
            group, waiting, more = [], {}, {}
        group.append(exchange)
        waiting |= more
    yield group, waiting


def _alike(one: Exchange, other: Exchange) -> bool:
    return one.sent.graph is other.sent.graph and _form(one) == _form(other)


def _form(exchange: Exchange) -> object:
    return described((exchange.sent.meta["val"], *exchange.sent.args[1:]))


def _between(group: Sequence[Exchange], waiting: _Waiting, following: Exchange) -> _Waiting | None:
    """What has to wait between a group and ``following``; ``None`` where that cannot join it."""
    brought, found = {exchange.sent for exchange in group} | set(waiting), _Waiting()
    node = group[-1].sent.next
    while node is not following.sent:
        if not is_pure(node) and node.target is not following.arrived.target:
            return None  # a write, in front of which something else may be read
        if not brought.isdisjoint(node.all_input_nodes):
            brought.add(node)
            found[node] = None
        node = node.next
    return None if following.ready in brought else found


def _join(group: Sequence[Exchange], waiting: _Waiting, rewriter: Rewriter) -> None:
    first, last = group[0], group[-1]
    with rewriter.at(last.sent, rule="together", like=first.sent):
        stacked = rewriter.call(aten.stack.default, [exchange.ready for exchange in group], 1)
        sent = rewriter.call(last.sent.target, stacked, *last.sent.args[1:])  # type: ignore[arg-type]
        arrived = rewriter.call(last.arrived.target, sent)  # type: ignore[arg-type]
        parts = [rewriter.call(aten.select.int, arrived, 1, number) for number in range(len(group))]
    end = last.sent
    for node in waiting:
        end.append(node)
        end = node
    for exchange, part in zip(group, parts, strict=True):
        exchange.arrived.replace_all_uses_with(part, propagate_meta=False)
        for node in (exchange.arrived, exchange.sent):
            node.graph.erase_node(node)
