"""Where the elements of a batch go in a graph, from its inputs on: by rules node by node, region by region."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.analysis.axes.factors import Layout, count, shared
from lightint_compile.passes.analysis.axes.plans import Blocked, Plan
from lightint_compile.passes.analysis.batch_elements.rules import rowwise
from lightint_compile.passes.ir.decision_points import is_region_call
from lightint_compile.passes.ir.effects import draws_random
from lightint_compile.passes.ir.fake_values import shape_of
from lightint_compile.passes.ir.op_arguments import results_in, tensors


@dataclass
class Flow:
    """What is known of one graph under given layouts of its inputs.

    Attributes:
        known: the layouts of the results of every node; that of a number is empty.
        rules: how a node is computed for one element alone, where one of its operands has elements.
        mixed: where that is not possible, and why; the layouts behind it are those of values that belong to no element.
        blamed: for values behind such places, the first of the reasons.
        inside: the flow of the region that a node calls.
        results: what is known of the graph's outputs.
        returned: the outputs.
    """

    known: dict[fx.Node, tuple[Layout, ...]] = field(default_factory=dict)
    rules: dict[fx.Node, Plan] = field(default_factory=dict)
    mixed: dict[fx.Node, Blocked] = field(default_factory=dict)
    blamed: dict[fx.Node, Blocked] = field(default_factory=dict)
    inside: dict[fx.Node, Flow] = field(default_factory=dict)
    results: tuple[Layout, ...] = ()
    returned: tuple[fx.Node, ...] = ()

    def meet(self, node: fx.Node, why: Blocked | None) -> None:
        """Elements meet at ``node``, or what it reads is a place where they met before."""
        before = next((self.blamed[source] for source in node.all_input_nodes if source in self.blamed), None)
        if node.target is operator.getitem and node.args[0] in self.inside:
            called = self.inside[node.args[0]]  # type: ignore[index]
            before = called.blamed.get(called.returned[node.args[1]])  # type: ignore[index, arg-type]
        if why is not None:
            self.mixed[node] = why = before or why
        if why is not None or (before is not None and not has_elements(self.known[node])):
            self.blamed[node] = why or before  # type: ignore[assignment]

    def layout(self, node: fx.Node) -> Layout:
        """The layout of a tensor; a number has none."""
        return self.known[node][0] if node in self.known else ()


class Flows:
    """The flows of a root graph and of the regions that it calls; a region is followed once for equal inputs."""

    def __init__(self, root: fx.GraphModule) -> None:
        self._root = root
        self._regions: dict[Any, Flow] = {}

    def of(self, module: fx.GraphModule, inputs: Sequence[Layout], blamed: Sequence[Blocked | None] = ()) -> Flow:
        """The flow of a graph; ``inputs`` are what is known of its placeholders, in order.

        Args:
            blamed: for each input where elements met in front of it, if they did; by default nowhere.
        """
        flow, given = Flow(), zip_longest(inputs, blamed)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                layout, why = next(given)
                flow.known[node] = (layout,)
                flow.blamed.update({node: why} if why is not None else {})
            elif node.op == "output":
                flow.returned = tuple(node.args[0])
                flow.results = tuple(map(flow.layout, flow.returned))
            else:
                self._visit(module, node, flow)
        return flow

    def region(self, name: str, inputs: Sequence[Layout], blamed: Sequence[Blocked | None] = ()) -> Flow:
        """The flow of a region of the root."""
        key = (name, tuple(inputs), tuple(blamed))
        if key not in self._regions:
            region = self._root.get_submodule(name)
            assert isinstance(region, fx.GraphModule)
            self._regions[key] = self.of(region, inputs, blamed)
        return self._regions[key]

    def _visit(self, module: fx.GraphModule, node: fx.Node, flow: Flow) -> None:
        flow.known[node] = tuple(
            shared(shape_of(value)) if isinstance(value, torch.Tensor) else () for value in results_in(node)
        )
        if node.op == "call_module" and is_region_call(module, node):
            blamed = [flow.blamed.get(source) for source in node.args]  # type: ignore[arg-type]
            inside = flow.inside[node] = self.region(str(node.target), layouts_read(node, flow), blamed)
            flow.known[node] = inside.results
            if inside.mixed:
                flow.mixed[node] = next(iter(inside.mixed.values()))
        elif node.op == "call_function":
            found = _ruled(node, flow)
            if isinstance(found, Plan):
                flow.known[node] = found.results
                if has_elements(layouts_read(node, flow)):
                    flow.rules[node] = found
            why = Blocked(f"{node.name} ({node.target}): {found.reason}") if isinstance(found, Blocked) else None
            flow.meet(node, why)


def layouts_read(node: fx.Node, flow: Flow) -> list[Layout]:
    """The layouts of the arguments of a call that are nodes, in order and with repetitions."""
    found: list[Layout] = []
    fx.map_arg((node.args, node.kwargs), lambda source: found.extend(flow.known[source]))
    return found


def has_elements(layouts: Iterable[Layout]) -> bool:
    """Whether any of several values differs from element to element."""
    return any(map(count, layouts))


def _ruled(node: fx.Node, flow: Flow) -> Plan | Blocked | None:
    """What the rules say; ``None`` of an operation without elements that no rule knows."""
    elements, is_tensor = has_elements(layouts_read(node, flow)), any(map(torch.is_tensor, results_in(node)))
    if node.target is operator.getitem:
        return Plan((flow.known[node.args[0]][node.args[1]],)) if is_tensor else None  # type: ignore[index]
    if not tensors(node) and not is_tensor:
        return None
    if draws_random(node):
        return Blocked("it draws random numbers, and no rule keeps elements apart") if elements else None
    found = rowwise(node, flow.layout)
    if found is None:
        return Blocked("no rule says whether it keeps elements apart") if elements and is_tensor else None
    if isinstance(found, Blocked):
        return found if elements else None
    return _WITH_ITSELF if any(count(layout) > 1 for layout in found.results) else found


_WITH_ITSELF = Blocked("elements of the batch meet one another, in a product of the batch with itself")
