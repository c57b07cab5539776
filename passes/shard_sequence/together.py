"""Exchanges that do not wait for each other go together: queries, keys and values of an attention are one transfer.

To start a transfer takes the host longer than to launch a kernel, and where a GPU is fast the host is what counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from lightint_compile.passes.ir.fake_values import described
from lightint_compile.passes.ir.rewriter import Rewriter
from lightint_compile.passes.ir.transfers import Exchange, Waiting, groups, move_behind

aten = torch.ops.aten


def joined(exchanges: Iterable[Exchange], rewriter: Rewriter) -> int:
    """Let neighbouring exchanges of equal values go as one; how many collectives that saves.

    Args:
        exchanges: in the order of their graph, of one group.
    """
    found = [(group, waiting) for group, waiting in groups(exchanges, _alike) if len(group) > 1]
    for group, waiting in found:
        _join(group, waiting, rewriter)
    return sum(len(group) - 1 for group, _ in found)


def _alike(one: Exchange, other: Exchange) -> bool:
    return one.sent.graph is other.sent.graph and _form(one) == _form(other)


def _form(exchange: Exchange) -> object:
    return described((exchange.sent.meta["val"], *exchange.sent.args[1:]))


def _join(group: Sequence[Exchange], waiting: Waiting, rewriter: Rewriter) -> None:
    first, last = group[0], group[-1]
    with rewriter.at(last.sent, rule="together", like=first.sent):
        stacked = rewriter.call(aten.stack.default, [exchange.ready for exchange in group], 1)
        sent = rewriter.call(last.sent.target, stacked, *last.sent.args[1:])  # type: ignore[arg-type]
        arrived = rewriter.call(last.arrived.target, sent)  # type: ignore[arg-type]
        parts = [rewriter.call(aten.select.int, arrived, 1, number) for number in range(len(group))]
    move_behind(last.sent, waiting)
    for exchange, part in zip(group, parts, strict=True):
        exchange.arrived.replace_all_uses_with(part, propagate_meta=False)
        for node in (exchange.arrived, exchange.sent):
            node.graph.erase_node(node)
