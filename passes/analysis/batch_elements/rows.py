"""A graph for one element alone: the same operations on the rows of that element, as the rules say."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor

from lightint_compile.passes.analysis.axes.factors import Kind, Layout, holds, place_of, without
from lightint_compile.passes.analysis.batch_elements.flow import Flow, Flows, has_elements, layouts_read
from lightint_compile.passes.ir.decision_points import is_region_call
from lightint_compile.passes.ir.fake_values import evaluated, shape_of, size_of
from lightint_compile.passes.ir.op_arguments import results_in
from lightint_compile.passes.ir.program import fake_mode_of, faking
from lightint_compile.passes.ir.rewriter import KEPT_META

aten = torch.ops.aten


class Refused(Exception):  # noqa: N818 - it says what happened, and is always caught
    """A graph cannot be computed for one element alone.

    Attributes:
        node: where that was noticed.
        reason: why.
    """

    def __init__(self, node: fx.Node, reason: str) -> None:
        super().__init__(reason)
        self.node, self.reason = node, reason


def take(values: Tensor, axis: int, outer: int, count: Any, element: int) -> Tensor:
    """The row of one of ``count`` elements, which lie on ``axis`` inside of ``outer`` values; a view where possible."""
    inner = values.shape[axis] // (outer * count)
    if outer == 1:
        return values.narrow(axis, element * inner, inner)
    return values.unflatten(axis, (outer, count, inner)).select(axis + 1, element).flatten(axis, axis + 1)


def join(rows: Sequence[Tensor], axis: int, order: Sequence[int]) -> Tensor:
    """Rows one behind the other on ``axis``, in memory that lies by ``order``, the outermost axis first."""
    if list(order) == sorted(order):
        return torch.cat(list(rows), axis)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return torch.cat([row.permute(*order) for row in rows], order.index(axis)).permute(*inverse)


class Rows:
    """Makes the graphs for one element of a root and of the regions that it calls.

    Args:
        count: how many elements the batch has.
    """

    def __init__(self, root: fx.GraphModule, flows: Flows, count: int | torch.SymInt) -> None:
        self._root, self._flows = root, flows
        self._count, self._size = count, size_of(count)
        self._mode = fake_mode_of(root.graph.nodes)
        self._regions: dict[Any, str] = {}

    def graph(self, module: fx.GraphModule, flow: Flow) -> fx.GraphModule:
        """``module`` for one element.

        Raises:
            Refused: elements meet in it, or a size of one element's row is not known.
        """
        made: dict[fx.Node, fx.Node] = {}
        graph = fx.Graph()
        for node in module.graph.nodes:
            if node in flow.mixed:
                raise Refused(node, flow.mixed[node].reason)
            if node.op == "placeholder":
                made[node] = graph.placeholder(node.name)
                made[node].target = made[node].name
                made[node].meta = {"val": self._row(node, flow.layout(node))}
            elif node.op == "output":
                graph.output(fx.map_arg(node.args[0], made.__getitem__))
            elif not self._counts(node):
                made[node] = self._copied(module, node, flow, graph, made)
        held: dict[str, Any] = {
            str(node.target): getattr(module, str(node.target)) for node in graph.nodes if node.op == "get_attr"
        }
        regions = {str(node.target) for node in graph.nodes if node.op == "call_module"}
        rows = fx.GraphModule(held | {name: self._root.get_submodule(name) for name in regions}, graph)
        rows.meta = copy.copy(module.meta)
        return rows

    def _copied(
        self, module: fx.GraphModule, node: fx.Node, flow: Flow, graph: fx.Graph, made: Mapping[fx.Node, fx.Node]
    ) -> fx.Node:
        operands = layouts_read(node, flow)
        if node.op == "call_module" and is_region_call(module, node):
            name = self._region(str(node.target), operands) if has_elements(operands) else str(node.target)
            copied = graph.call_module(name, fx.map_arg(node.args, made.__getitem__))
            copied.meta = copy.copy(node.meta)
            region = self._root.get_submodule(name)
            assert isinstance(region, fx.GraphModule)
            copied.meta["val"] = tuple(each.meta["val"] for each in region.graph.output_node().args[0])  # type: ignore[union-attr]
            return copied
        if node in flow.rules:
            return self._ruled(node, flow, graph, made)
        copied = graph.node_copy(node, lambda source: self._operand(node, source, made))
        copied.meta = copy.copy(node.meta)
        return copied

    def _ruled(self, node: fx.Node, flow: Flow, graph: fx.Graph, made: Mapping[fx.Node, fx.Node]) -> fx.Node:
        rule = flow.rules[node]
        read = {
            source: self._cut(made[source], flow.layout(source), wanted, graph)
            for source, wanted in rule.operands.items()
        }
        args, kwargs = fx.map_arg(
            (node.args if rule.args is None else rule.args, node.kwargs),
            lambda source: read.get(source) or self._operand(node, source, made),
        )
        return self._call(graph, node, args, kwargs, rule.results)

    def _call(
        self, graph: fx.Graph, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], layouts: Sequence[Layout]
    ) -> fx.Node:
        target, value = evaluated(node.target, args, kwargs, self._mode)
        copied = graph.call_function(target, args, kwargs, name=node.name)
        copied.meta = {key: node.meta[key] for key in KEPT_META if key in node.meta} | {"val": value}
        for result, layout in zip(results_in(copied), layouts, strict=True):
            if isinstance(result, Tensor) and shape_of(result) != tuple(without(entry, Kind.BATCH) for entry in layout):
                raise Refused(node, f"{node.name}: the row of one element has another shape than its part of the batch")
        return copied

    def _cut(self, row: fx.Node, layout: Layout, wanted: Layout, graph: fx.Graph) -> fx.Node:
        """An operand that is the same for all elements, as long as the row of one."""
        for dim, (entry, want) in enumerate(zip(layout, wanted, strict=True)):
            if holds(want, Kind.BATCH) and not holds(entry, Kind.BATCH):
                length = without(want, Kind.BATCH)
                if not isinstance(length, int):
                    raise Refused(row, f"{row.name}: a size of one element's row is not known")
                source = row
                row = graph.call_function(aten.slice.Tensor, (source, dim, 0, length))
                with faking(self._mode):
                    row.meta["val"] = aten.slice.Tensor(source.meta["val"], dim, 0, length)
        return row

    def _region(self, name: str, operands: Sequence[Layout]) -> str:
        """The region ``name`` for one element, as another region of the root; its name."""
        key = (name, tuple(operands))
        if key not in self._regions:
            region = self._root.get_submodule(name)
            assert isinstance(region, fx.GraphModule)
            known = sum(other == name for other, _ in self._regions)
            self._regions[key] = f"{name}_row{f'_{known}' if known else ''}"
            self._root.add_submodule(self._regions[key], self.graph(region, self._flows.region(name, operands)))
        return self._regions[key]

    def _operand(self, node: fx.Node, source: fx.Node, made: Mapping[fx.Node, fx.Node]) -> fx.Node:
        if self._counts(source):
            raise Refused(node, f"{node.name} depends on the size of the batch, by {source.name}")
        return made[source]

    def _counts(self, node: fx.Node) -> bool:
        """Whether a node is a number that depends on how many elements there are."""
        value = node.meta.get("val")
        if isinstance(self._size, int) or not isinstance(value, torch.SymInt):
            return False
        return bool(value.node.expr.has(self._size))

    def _row(self, node: fx.Node, layout: Layout) -> Any:
        """The fake row of an input."""
        value, place = node.meta.get("val"), place_of(layout)
        if place is None or not isinstance(value, Tensor):
            return value
        if not isinstance(place.outer, int):
            raise Refused(node, f"{node.name} has the batch inside of an axis of unknown size")
        with faking(self._mode):
            row = take(value, place.axis, place.outer, self._count, 0)
            return torch.empty_strided(row.shape, row.stride(), dtype=row.dtype, device=row.device)
