"""The root graph: calls of submodules, the few elements they return, sizes, and views that need no kernel."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.ir.condensed_graph import Contraction
from lightint_compile.passes.ir.node_queries import MEMO, Dependencies
from lightint_compile.passes.ir.provenance import MADE_BY, origin_of
from lightint_compile.passes.ir.rewriter import KEPT_META
from lightint_compile.passes.outline_regions.forms import Form
from lightint_compile.passes.outline_regions.pieces import Piece
from lightint_compile.passes.outline_regions.submodules import Outlined

aten = torch.ops.aten


class Root:
    """Builds the root graph, one call or one node at a time."""

    def __init__(self, entries: Sequence[Outlined], names: Mapping[int, str]) -> None:
        self.graph = fx.Graph()
        self._names = names
        self._made: dict[fx.Node, fx.Node] = {}
        self._of: dict[int, tuple[Outlined, Form]] = {
            id(piece): (entry, form) for entry in entries for piece, form in zip(entry.pieces, entry.forms, strict=True)
        }

    def build(self, pieces: Sequence[Piece], dependencies: Dependencies) -> fx.Graph:
        """The whole graph, in an order close to the original's."""
        contraction = Contraction([piece.nodes for piece in pieces], dependencies)
        for step in contraction.order():
            if step < len(pieces):
                self._call(pieces[step])
            else:
                self._copy(contraction.steps[step][0])
        return self.graph

    def _copy(self, node: fx.Node) -> None:
        copied = self._made[node] = self.graph.node_copy(node, self._made.__getitem__)
        copied.meta = copy.copy(node.meta)

    def _call(self, piece: Piece) -> None:
        entry, form = self._of[id(piece)]
        numbers = [self._number(form.nodes[index], form.numbers[index]) for index in entry.lifted]
        arguments = (*(self._made[source] for source in form.inputs), *numbers)
        call = self.graph.create_node("call_module", entry.name, arguments, name=self._names[id(piece)])
        call.meta = {key: form.nodes[-1].meta[key] for key in KEPT_META if key in form.nodes[-1].meta}
        call.meta["val"] = tuple(form.nodes[index].meta["val"] for index in entry.returned)
        call.meta[MADE_BY] = {
            "pass": "outline-regions",
            "rule": entry.kind,
            "origins": tuple(map(origin_of, form.nodes)),
        }
        if piece.memo:
            call.meta[MEMO] = piece.memo
        self._read(call, entry, form)

    def _read(self, call: fx.Node, entry: Outlined, form: Form) -> None:
        """The results of a call that something outside reads, and the views of them."""
        inside = set(form.nodes)
        read = {i for i, node in enumerate(form.nodes) if any(user not in inside for user in node.users)}
        views = [chain for index, chain in sorted(entry.replayed.items()) if index in read]
        needed = {place for place, index in enumerate(entry.returned) if index in read}
        starts = {form.nodes[chain[0]].args[0] for chain in views}
        needed |= {place for place, index in enumerate(entry.returned) if form.nodes[index] in starts}
        for place in sorted(needed):
            node = form.nodes[entry.returned[place]]
            element = self._made[node] = self.graph.call_function(operator.getitem, (call, place))
            element.meta = copy.copy(node.meta)
        for chain in views:
            for index in chain:
                if form.nodes[index] not in self._made:
                    self._copy(form.nodes[index])

    def _number(self, like: fx.Node, value: float) -> fx.Node:
        """``value`` as a tensor; double precision on the CPU is what a Python number is to an operator."""
        arguments: dict[str, Any] = {"dtype": torch.float64, "device": torch.device("cpu")}
        number = self.graph.call_function(aten.full.default, ([], value), arguments)
        tensor = like.args[0]
        assert isinstance(tensor, fx.Node)
        with tensor.meta["val"].fake_mode:
            number.meta["val"] = torch.empty((), dtype=torch.float64, device="cpu")
        return number
