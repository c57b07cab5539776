"""A rewritten graph as text to read: a line an operation, with who made it, from which module, at what size.

Lines say nothing that changes when something else does, so that two of these texts can be compared line by line.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch.fx as fx
import torch.utils._pytree as pytree

from lightint_compile.passes.ir.provenance import made_by
from lightint_compile.passes.ir.remarks import module_path_of, source_of
from lightint_compile.reporting.page.graph_rows import target_of, value_text


def readable(graph_module: fx.GraphModule) -> str:
    """The graph, then every region and branch that it calls."""
    return "\n".join(_lines("root", graph_module, set()))


def _lines(name: str, module: fx.GraphModule, seen: set[int]) -> Iterator[str]:
    if id(module) in seen:
        return
    seen.add(id(module))
    inputs = ", ".join(node.name for node in module.graph.nodes if node.op == "placeholder")
    yield f"def {name}({inputs}):"
    calls = [node for node in module.graph.nodes if node.op not in ("placeholder", "output", "get_attr")]
    for place, nodes in groupby(calls, key=_place):
        if place:
            yield f"    # {place}"
        yield from map(_line, nodes)
    yield f"    return {_argument(module.graph.output_node().args[0])}"
    yield ""
    for key, child in module.named_children():
        if isinstance(child, fx.GraphModule):
            yield from _lines(key, child, seen)


def _place(node: fx.Node) -> str:
    return " · ".join(filter(None, (module_path_of(node), source_of(node))))


def _line(node: fx.Node) -> str:
    given = [*map(_argument, node.args), *(f"{key}={_argument(value)}" for key, value in node.kwargs.items())]
    mark = made_by(node)
    by = f"by {mark['pass']}" + (f" [{mark['rule']}]" if mark.get("rule") else "") if mark else ""
    told = " · ".join(filter(None, (value_text(node.meta.get("val")), by)))
    return f"    {node.name} = {target_of(node)}({', '.join(given)})" + (f"  # {told}" if told else "")


def _argument(value: Any) -> str:
    return str(pytree.tree_map_only(fx.Node, lambda node: _Name(node.name), value, is_leaf=_is_node))


def _is_node(value: Any) -> bool:
    return isinstance(value, fx.Node)


class _Name(str):
    """A name that prints as it is, also inside of a list."""

    def __repr__(self) -> str:
        return str(self)
