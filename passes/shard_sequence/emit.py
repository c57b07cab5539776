"""Writing what was found into the graph: every call becomes the same call on a rank's part."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree

from lightint_compile.errors import PassError
from lightint_compile.passes.analysis.axes.factors import Kind, Layout, place_of, without
from lightint_compile.passes.ir.fake_values import another, described, evaluated, shape_of
from lightint_compile.passes.ir.flops import bytes_of_value
from lightint_compile.passes.ir.memory_sharing import memory_order, output_memory
from lightint_compile.passes.ir.op_arguments import results_in
from lightint_compile.passes.ir.program import Program, fake_mode_of
from lightint_compile.passes.ir.ranks import Ranks
from lightint_compile.passes.ir.rewriter import Rewriter, stored_in
from lightint_compile.passes.ir.transfers import spread
from lightint_compile.passes.shard_sequence.around import Rings
from lightint_compile.passes.shard_sequence.collectives import Collectives
from lightint_compile.passes.shard_sequence.flow import Flow
from lightint_compile.passes.shard_sequence.teams import Team
from lightint_compile.passes.shard_sequence.together import joined


class Emission:
    """Rewrites the calls of a program in place.

    Args:
        by_copies: heads are exchanged by copies, each exchange by itself.

    Attributes:
        exchanged, gathered: how many collectives of each kind were written, but for those of rings.
    """

    def __init__(self, program: Program, flow: Flow, ranks: Ranks, pass_name: str, by_copies: bool) -> None:
        self._program, self._flow, self._ranks, self._by_copies = program, flow, ranks, by_copies
        self._rewriter = Rewriter(program, pass_name)
        self._collectives = Collectives(Team.of_all(ranks), self._rewriter.call, by_copies)
        self._rings = Rings(ranks, flow.rings, self._rewriter, self._bring)
        self._mode = fake_mode_of(program.graph.nodes)
        self._converted: dict[tuple[fx.Node, Layout], fx.Node] = {}
        self._orders = {node: memory_order(node.meta["val"]) for node in output_memory(program.graph)}
        self._known: dict[Any, Any] = {}
        self._first = next(node for node in program.graph.nodes if node.op != "placeholder")
        self.exchanged = self.gathered = self._sent = 0

    @property
    def sent_around(self) -> int:
        """Of :attr:`sent`, those of rings and of heads exchanged for them."""
        return self._rings.sent

    @property
    def sent(self) -> int:
        """Bytes that one rank sends to others, symbolic sizes at their hints."""
        return self._sent + self.sent_around

    def rewrite(self) -> None:
        """Rewrite every call that reads or makes parts."""
        for node in list(self._program.graph.nodes):
            if node in self._flow.rings:
                self._rings.write(node, self._flow.rings[node])
                self._evaluate(node)
            elif node in self._flow.reads:
                self._rewrite(node)
            elif node in self._flow.known and node not in self._flow.entries:
                self._evaluate(node)
        places = {node: place for place, node in enumerate(self._program.graph.nodes)}
        exchanges = sorted(self._collectives.exchanges, key=lambda exchange: places[exchange.sent])
        self.exchanged = len(exchanges)
        if self._by_copies:
            spread(self._program.graph)
        else:
            self.exchanged -= joined(exchanges, self._rewriter)

    def _rewrite(self, node: fx.Node) -> None:
        read = {source: self._bring(source, layout) for source, layout in self._flow.reads[node].items()}
        plan = self._flow.plans.get(node)
        args = node.args if plan is None or plan.args is None else plan.args

        def brought(value: Any) -> Any:
            return read.get(value, value) if isinstance(value, fx.Node) else value

        if node.op == "output":
            node.args = pytree.tree_map(self._returned(brought), args)
            return
        node.args, node.kwargs = pytree.tree_map(brought, (args, dict(node.kwargs)))
        if node.op == "call_function":
            self._evaluate(node)

    def _evaluate(self, node: fx.Node) -> None:
        key = (node.target, described(node.args), described(node.kwargs))
        if key not in self._known:  # equal blocks ask the same of every one of their calls
            self._known[key] = evaluated(node.target, node.args, node.kwargs, self._mode)
        node.target, value = self._known[key]
        node.meta["val"] = another(value)
        layouts = self._flow.known.get(node, ()) if node not in self._flow.entries else ()
        for result, layout in zip(results_in(node), layouts, strict=False):
            parts = tuple(without(entry, Kind.BATCH) for entry in layout)
            if isinstance(result, torch.Tensor) and shape_of(result) != parts:
                raise PassError(f"{node.name} is no part of what it was", why=f"{shape_of(result)} in place of {parts}")

    def _returned(self, brought: Any) -> Any:
        """An output in the memory order that the caller knows."""

        def returned(value: Any) -> Any:
            found = brought(value)
            order = self._orders.get(value) if isinstance(value, fx.Node) else None
            if found is value or order is None or order == memory_order(found.meta["val"]):
                return found
            with self._rewriter.at(found.next, rule="memory-order"):
                return stored_in(order, found, self._rewriter.call)

        return returned

    def _bring(self, source: fx.Node, want: Layout) -> fx.Node:
        """A value in another layout than it is made in; made once for all who read it so."""
        have = self._flow.made(source)
        if have == want:
            return source
        key = (source, want)
        if key not in self._converted:
            is_input = source.op == "placeholder"
            place = self._first if is_input else source.next
            with self._rewriter.at(place, rule="shard", like=place if is_input else source):
                self._converted[key] = self._convert(source, have, want)
        return self._converted[key]

    def _convert(self, source: fx.Node, have: Layout, want: Layout) -> fx.Node:
        before, after = place_of(have), place_of(want)
        if before is None:
            assert after is not None
            return self._collectives.take(source, after)
        count, payload = self._ranks.count, bytes_of_value(source.meta["val"])
        if after is None:
            self.gathered += 1
            self._sent += payload * (count - 1)
            return self._collectives.gather(source, before)
        self._sent += payload * (count - 1) // count
        return self._collectives.exchange(source, before, after)
