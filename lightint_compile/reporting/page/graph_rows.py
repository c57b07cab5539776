"""A graph as rows for the page: one an operation, with what hovering over it shows.

Elements of tuples, constants that name a graph, and weights are left out; what reads them is joined with what made
them. Texts that occur often are numbers into one table.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree

from lightint_compile.passes.ir.decision_points import point_of
from lightint_compile.passes.ir.flops import bytes_of, flops_of
from lightint_compile.passes.ir.provenance import made_by, origin_of
from lightint_compile.passes.ir.remarks import module_path_of, source_of
from lightint_compile.passes.step_cache.per_element import EACH

COLUMNS = ("name", "target", "value", "source", "path", "flops", "bytes", "pass", "rule", "phase", "kind", "inputs")
"""What a row holds, in order. ``inputs`` are places of rows of the same graph."""


class Texts:
    """Texts by number, each once."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._place: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The place of a text in :attr:`all`."""
        if text not in self._place:
            self._place[text] = len(self.all)
            self.all.append(text)
        return self._place[text]


@dataclass
class Rows:
    """One graph.

    Attributes:
        rows: a list of :data:`COLUMNS` for each operation, in order.
        place: of each node that has a row.
        nodes: those nodes.
    """

    rows: list[list[Any]] = field(default_factory=list)
    place: dict[fx.Node, int] = field(default_factory=dict)
    nodes: list[fx.Node] = field(default_factory=list)

    @classmethod
    def of(cls, module: fx.GraphModule, texts: Texts, phases: Mapping[fx.Node, str], *, inputs: bool = True) -> Rows:
        """The rows of a graph, with or without its inputs; ``phases`` says where in a chunk a node runs."""
        made = cls()
        for node in module.graph.nodes:
            if is_shown(node) and (inputs or node.op != "placeholder"):
                made.place[node] = len(made.rows)
                made.nodes.append(node)
                made.rows.append(_row(module, node, texts, phases.get(node, ""), made.place))
        return made

    def named(self) -> dict[str, int]:
        """The place of each row by the node's name."""
        return {node.name: place for node, place in self.place.items()}

    def by_origin(self) -> dict[str, int]:
        """The place of a row that stands for a captured node, by that node's name."""
        return {origin_of(node): place for node, place in self.place.items()}


def is_shown(node: fx.Node) -> bool:
    """Whether a node is drawn: operations, calls, and inputs that are no weights."""
    if node.op == "placeholder":
        return not is_weight(node)
    return node.op not in ("output", "get_attr") and node.target is not operator.getitem


def is_weight(node: fx.Node) -> bool:
    """Whether a placeholder is a parameter or a buffer of the module, as capture names them."""
    return node.op == "placeholder" and node.name.startswith(("p_", "b_"))


def _row(module: fx.GraphModule, node: fx.Node, texts: Texts, phase: str, place: Mapping[fx.Node, int]) -> list[Any]:
    mark = made_by(node)
    words = (
        target_of(node),
        value_text(node.meta.get("val")),
        source_of(node),
        module_path_of(node),
    )
    told = (str(mark.get("pass", "")), str(mark.get("rule", "")), phase, kind_of(module, node))
    inputs = sorted({place[source] for source in _sources(node) if source in place})
    return [
        node.name,
        *map(texts.number, words),
        flops_of(node),
        bytes_of(node),
        *map(texts.number, told),
        inputs,
    ]


def _sources(node: fx.Node) -> Iterator[fx.Node]:
    """What a node reads, behind elements of tuples."""
    for source in node.all_input_nodes:
        while source.target is operator.getitem and isinstance(source.args[0], fx.Node):
            source = source.args[0]
        yield source


def kind_of(module: fx.GraphModule, node: fx.Node) -> str:
    """``input``, ``decision``, ``region``, ``branch`` or ``operation``."""
    if node.op == "placeholder":
        return "input"
    if node.op == "call_module":
        return "decision" if point_of(module, node) is not None else "region"
    return "branch" if node.target in (torch.ops.higher_order.cond, EACH) else "operation"


def target_of(node: fx.Node) -> str:
    """What a node calls, as a person writes it: ``aten.linear.default``."""
    target = node.target
    if isinstance(target, str):
        return target
    name = str(target) if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))
    return str(name)


def value_text(value: Any) -> str:
    """A fake value as dtype and sizes: ``float32[2, s3, 8]``; a tuple as its elements."""
    leaves = pytree.tree_leaves(value) if isinstance(value, (tuple, list)) else [value]
    told = [_one(leaf) for leaf in leaves if leaf is not None]
    return ", ".join(told[:4]) + (f", {len(told) - 4} more" if len(told) > 4 else "")


def _one(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        sizes = ", ".join(str(size) for size in value.shape)
        return f"{str(value.dtype).removeprefix('torch.')}[{sizes}]"
    return str(value)
