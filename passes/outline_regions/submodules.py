"""One submodule for all pieces of one form: its inputs, its outputs, its graph."""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.ir.memory_sharing import alias_source
from lightint_compile.passes.ir.node_queries import graph_of, is_ordered
from lightint_compile.passes.outline_regions.forms import Form
from lightint_compile.passes.outline_regions.host_work import runs_on_host
from lightint_compile.passes.outline_regions.pieces import Piece

aten = torch.ops.aten

_AFTER_INDEX = re.compile(r"^(?:p|b)_(?:.*_)?\d+_(?=\D)")
_COUNTER = re.compile(r"_\d+$")


@dataclass
class Outlined:
    """All pieces of one form, and their submodule.

    Attributes:
        kind: ``block``, ``control``, ``glue`` or ``memo``.
        pieces: the pieces, and for each its form, in the order of the graph.
        lifted: nodes whose Python number differs between pieces, so that the submodule takes it as a tensor.
        returned: indices of the nodes that the submodule returns.
        replayed: nodes that the root computes from a returned value or an input, because they only view it: for each
            the nodes to run, as indices, the last one being the node itself.
        cloned: returned views that the root cannot compute; they are copied.
        name: the submodule's name in the root.
    """

    kind: str
    pieces: list[Piece] = field(default_factory=list)
    forms: list[Form] = field(default_factory=list)
    lifted: list[int] = field(default_factory=list)
    returned: list[int] = field(default_factory=list)
    replayed: dict[int, list[int]] = field(default_factory=dict)
    cloned: list[int] = field(default_factory=list)
    name: str = ""

    def settle(self) -> None:
        """Decide what is lifted, returned and replayed, once all pieces are known."""
        numbers = [form.numbers for form in self.forms]
        self.lifted = [index for index in numbers[0] if len({repr(each[index]) for each in numbers}) > 1]
        wanted = sorted(set().union(*map(_read_outside, self.forms)))
        form = self.forms[0]
        place = {node: index for index, node in enumerate(form.nodes)}
        sharing: dict[fx.Node, list[int]] = defaultdict(list)
        for index in wanted:
            sharing[_base(form.nodes[index], place)].append(index)
        returned: set[int] = set()
        for base, indices in sharing.items():
            views = [index for index in indices if form.nodes[index] is not base]
            if base in place and len(indices) == 1:
                returned.update(indices)
                continue
            chains = {index: _chain(form.nodes[index], base, place) for index in views}
            self.replayed |= {index: chain for index, chain in chains.items() if _reads_one(chain, form.nodes, place)}
            self.cloned += [index for index in views if index not in self.replayed]
            returned.update([place[base]] if base in place else [], self.cloned)
        self.returned = sorted(returned)

    def module(self) -> fx.GraphModule:
        """The submodule: placeholders for the inputs and the lifted numbers, one flat tuple of outputs."""
        form = self.forms[0]
        graph = fx.Graph()
        made: dict[fx.Node, fx.Node] = {}
        for source in form.inputs:
            made[source] = _placeholder(graph, _short_name(source))
            made[source].meta["val"] = source.meta.get("val")
        numbers = {index: self._number(graph, index) for index in self.lifted}
        held = {node: found for each in form.nodes for node in each.all_input_nodes if (found := graph_of(node))}
        for node in held:
            made[node] = graph.node_copy(node)
        for index, node in enumerate(form.nodes):
            copied = made[node] = graph.node_copy(node, made.__getitem__)
            copied.meta = copy.copy(node.meta)
            if index in numbers:
                copied.args = (copied.args[0], numbers[index], *copied.args[2:])
        graph.output(tuple(self._output(graph, made[form.nodes[index]], index) for index in self.returned))
        module = fx.GraphModule({str(node.target): called for node, called in held.items()}, graph)
        module.meta["lightint"] = {
            "kind": self.kind,
            "calls": len(self.pieces),
            "paths": [piece.path for piece in self.pieces if piece.path],
            "nodes": len(form.nodes),
            **({"on_host": True} if all(runs_on_host(each.nodes) for each in self.forms) else {}),
        }
        if any(map(is_ordered, form.nodes)):
            module._is_impure = True  # type: ignore[assignment]
        return module

    def _output(self, graph: fx.Graph, node: fx.Node, index: int) -> fx.Node:
        if index not in self.cloned:
            return node
        own = graph.call_function(aten.clone.default, (node,))
        own.meta = copy.copy(node.meta)
        return own

    def _number(self, graph: fx.Graph, index: int) -> fx.Node:
        node = self.forms[0].nodes[index]
        placeholder = _placeholder(graph, f"{_COUNTER.sub('', node.name)}_by")
        tensor = node.args[0]
        assert isinstance(tensor, fx.Node)
        with tensor.meta["val"].fake_mode:
            placeholder.meta["val"] = torch.empty((), dtype=torch.float64, device="cpu")
        return placeholder


def _read_outside(form: Form) -> set[int]:
    inside = set(form.nodes)
    return {index for index, node in enumerate(form.nodes) if any(user not in inside for user in node.users)}


def _base(node: fx.Node, place: Mapping[fx.Node, int]) -> fx.Node:
    """The node whose memory ``node`` views: in the piece, or the input that the views start from."""
    while node in place and (source := alias_source(node)) is not None:
        node = source
    return node


def _chain(node: fx.Node, base: fx.Node, place: Mapping[fx.Node, int]) -> list[int]:
    """The views between ``base`` and ``node``, which is the last of them."""
    chain: list[int] = []
    current: Any = node
    while current is not base:
        chain.append(place[current])
        current = current.args[0]
    return chain[::-1]


def _reads_one(chain: list[int], nodes: tuple[fx.Node, ...], place: Mapping[fx.Node, int]) -> bool:
    """Whether views read nothing of the piece but what they view (``view_as`` would)."""
    return all(source is nodes[i].args[0] or source not in place for i in chain for source in nodes[i].all_input_nodes)


def _placeholder(graph: fx.Graph, name: str) -> fx.Node:
    placeholder = graph.placeholder(name)
    placeholder.target = placeholder.name  # FX makes node names unique, not argument names
    return placeholder


def _short_name(node: fx.Node) -> str:
    """A parameter's name without the path to its block, a value's without the counter."""
    return _AFTER_INDEX.sub("", node.name) if node.op == "placeholder" else _COUNTER.sub("", node.name)


def outlined(pieces: Iterable[Piece], forms: Mapping[int, Form]) -> list[Outlined]:
    """Pieces of one kind and form under one submodule each, in the order of first appearance, with names."""
    table: dict[tuple[Any, ...], Outlined] = {}
    for number, piece in enumerate(pieces):
        entry = table.setdefault((piece.kind, piece.memo, forms[number].key), Outlined(piece.kind))
        entry.pieces.append(piece)
        entry.forms.append(forms[number])
    counts: dict[str, int] = defaultdict(int)
    for entry in table.values():
        entry.settle()
        entry.name = f"{entry.kind}_{counts[entry.kind]}"
        counts[entry.kind] += 1
    return list(table.values())
