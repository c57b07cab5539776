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
    groups = [group for group in _groups(list(exchanges)) if len(group) > 1]
    for group in groups:
        _join(group, rewriter)
    return sum(len(group) - 1 for group in groups)


def _groups(exchanges: Sequence[Exchange]) -> Iterator[list[Exchange]]:
    """Runs of exchanges of which none needs what another brings, with no write between them."""
    group: list[Exchange] = []
    behind: set[fx.Node] = set()
    for exchange in exchanges:
        if group and not (_alike(group[0], exchange) and _reaches(group[-1], exchange, behind)):
            yield group
            group, behind = [], set()
        group.append(exchange)
        behind.add(exchange.sent)
    yield group


def _alike(one: Exchange, other: Exchange) -> bool:
    return one.sent.graph is other.sent.graph and _form(one) == _form(other)


def _form(exchange: Exchange) -> object:
    return described((exchange.sent.meta["val"], *exchange.sent.args[1:]))


def _reaches(last: Exchange, following: Exchange, behind: set[fx.Node]) -> bool:
    """Whether what follows a group can wait until ``following`` is ready; adds to ``behind`` what has to."""
    node = last.sent.next
    while node is not following.sent:
        if not is_pure(node) and node.target is not last.arrived.target:
            return False  # a write, in front of which something else may be read
        if not behind.isdisjoint(node.all_input_nodes):
            behind.add(node)
        node = node.next
    return following.ready not in behind


def _join(group: Sequence[Exchange], rewriter: Rewriter) -> None:
    first, last = group[0], group[-1]
    waiting = _behind(group)
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


def _behind(group: Sequence[Exchange]) -> list[fx.Node]:
    """What stands in front of the last exchange and reads what another one brings, in order."""
    found = dict.fromkeys(exchange.sent for exchange in group[:-1])
    moved, node = [], group[0].sent.next
    while node is not group[-1].sent:
        if node in found:
            node = node.next
            continue
        if any(source in found for source in node.all_input_nodes):
            found[node] = None
            moved.append(node)
        node = node.next
    return moved
