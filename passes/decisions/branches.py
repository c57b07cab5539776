"""Branches around denoising steps: ``cond(reused, reuse, compute, operands)`` with both sides as graphs of their own.

Both sides take the same operands and return the same tuple, fresh tensors all: the step's predictions, and what the
next guarded step needs to know of the steps computed so far.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.fx as fx

from lightint_compile.passes.decisions.extrapolation import EXTRAPOLATE, extrapolation, number, weight_of
from lightint_compile.passes.decisions.marks import MarkedStep
from lightint_compile.passes.decisions.points import DecisionPoint, StepPoint
from lightint_compile.passes.decisions.steps import StepBody

aten = torch.ops.aten


@dataclass(frozen=True)
class Past:
    """What is known of the steps computed so far, as nodes.

    Attributes:
        latest: predictions of the latest computed step.
        first: its first block's output, where drift is watched.
        line: its sigma, and prediction and sigma of the computed step before it, where predictions are extrapolated;
            after the first step of a loop only its sigma.
    """

    latest: tuple[fx.Node, ...]
    first: tuple[fx.Node, ...] = ()
    line: tuple[fx.Node, ...] = ()

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """All of it, in a fixed order."""
        return (*self.latest, *self.first, *self.line)

    def like(self, nodes: Sequence[fx.Node]) -> Past:
        """The same parts, made of ``nodes`` instead; a line that was a single sigma is complete from now on."""
        split = len(self.latest) + len(self.first)
        return Past(tuple(nodes[: len(self.latest)]), tuple(nodes[len(self.latest) : split]), tuple(nodes[split:]))


class GuardedSteps:
    """Rewrites the root of a program, step by step.

    Args:
        record: what the plan of the chunk gave.
        strategy: ``hold`` or ``extrapolate``; the latter needs one prediction and one scalar a step.
        drift: as of :class:`StepPoint`.
    """

    def __init__(
        self,
        root: fx.GraphModule,
        steps: Sequence[MarkedStep],
        bodies: Sequence[StepBody],
        record: fx.Node,
        strategy: str,
        drift: float | None,
    ) -> None:
        self._root, self._steps, self._bodies = root, steps, bodies
        self._record, self._drift = record, drift
        self._extrapolates = strategy == "extrapolate"

    def rewrite(self) -> None:
        """Put a branch around every step between the first and the last."""
        if self._extrapolates:
            prediction = self._bodies[0].predictions[0]
            self._root.add_submodule(EXTRAPOLATE, extrapolation(prediction.meta["val"]))
        past = self._after_first()
        last = len(self._steps) - 2
        for step in range(1, last + 1):
            past = self._guard(step, past, keeps=step < last)

    def _after_first(self) -> Past:
        body = self._bodies[0]
        line: tuple[fx.Node, ...] = ()
        if self._extrapolates:
            with self._root.graph.inserting_after(body.predictions[0]):
                line = (number(self._root.graph, self._sigma(0), body.predictions[0].meta["val"]),)
        return Past(body.predictions, self._first(body), line)

    def _first(self, body: StepBody) -> tuple[fx.Node, ...]:
        return (body.first,) if self._drift is not None and body.first is not None else ()

    def _sigma(self, step: int) -> float:
        """The sigma of a step less that of the first: the sum of the Euler steps between."""
        return float(sum(sum(each.scalars) for each in self._steps[:step]))

    def _guard(self, step: int, past: Past, keeps: bool) -> Past:
        """Put a branch around one step; with ``keeps`` it hands on the past for the next guarded step."""
        body, graph = self._bodies[step], self._root.graph
        inside = body.nodes if self._drift is None else body.tail
        now = self._first(body)
        operands = _operands(inside, (*past.nodes, *now))
        with graph.inserting_before(inside[-1]):
            reused = self._ask(step, (*now, *past.first))
            reuse, compute = _Side(self._root, operands), _Side(self._root, operands)
            results = [self._reuse(step, past, reuse), self._compute(step, inside, compute)]
            if keeps:
                results[0] += self._kept_by_reuse(past, reuse)
                results[1] += self._kept_by_compute(step, past, compute)
            sides = reuse.finished(results[0]), compute.finished(results[1])
            elements = self._call(step, reused, sides, operands)
        count = len(body.predictions)
        for element, prediction in zip(elements, body.predictions, strict=False):
            element.meta = copy.copy(prediction.meta)
            prediction.replace_all_uses_with(element, propagate_meta=False)
        for node in reversed(inside):
            graph.erase_node(node)
        return past.like(elements[count:])

    def _ask(self, step: int, watched: tuple[fx.Node, ...]) -> fx.Node:
        name = f"reuse_step_{step}"
        self._root.add_submodule(name, DecisionPoint(StepPoint(step, self._drift)))
        asked = self._root.graph.create_node("call_module", name, (self._record, *watched), name=f"step_{step}_reused")
        asked.meta["val"] = False
        return asked

    def _reuse(self, step: int, past: Past, side: _Side) -> list[fx.Node]:
        """The step's predictions, from the past."""
        if len(past.line) < 2:
            return [side.clone(node) for node in past.latest]
        return [side.extrapolated(past.latest[0], side.number(self._sigma(step), past.latest[0]), past.line)]

    def _compute(self, step: int, inside: Sequence[fx.Node], side: _Side) -> list[fx.Node]:
        """The step's predictions, as the model makes them."""
        side.copy(inside)
        return [side.of(node) for node in self._bodies[step].predictions]

    def _kept_by_reuse(self, past: Past, side: _Side) -> list[fx.Node]:
        """The past stays what it was."""
        kept = [side.clone(node) for node in past.nodes]
        if len(past.line) == 1:  # a line through one value twice holds it
            kept += [side.clone(past.latest[0]), side.number(self._sigma(0) - 1.0, past.latest[0])]
        return kept

    def _kept_by_compute(self, step: int, past: Past, side: _Side) -> list[fx.Node]:
        """The step becomes the latest of the past."""
        body = self._bodies[step]
        kept = [side.clone(node) for node in (*body.predictions, *self._first(body))]
        if past.line:
            sigma = side.number(self._sigma(step), past.latest[0])
            kept += [sigma, side.clone(past.latest[0]), side.clone(past.line[0])]
        return kept

    def _call(
        self, step: int, reused: fx.Node, sides: tuple[fx.GraphModule, fx.GraphModule], operands: Sequence[fx.Node]
    ) -> list[fx.Node]:
        graph = self._root.graph
        attributes = []
        for name, side in zip((f"step_{step}_reuse", f"step_{step}_compute"), sides, strict=True):
            self._root.add_submodule(name, side)
            attributes.append(graph.get_attr(name))
            attributes[-1].meta["val"] = None
        call = graph.create_node(
            "call_function", torch.ops.higher_order.cond, (reused, *attributes, tuple(operands)), name=f"step_{step}"
        )
        call.meta["val"] = tuple(node.meta["val"] for node in sides[1].graph.output_node().args[0])  # type: ignore[union-attr]
        results = [graph.call_function(operator.getitem, (call, place)) for place in range(len(call.meta["val"]))]
        for result, value in zip(results, call.meta["val"], strict=True):
            result.meta["val"] = value
        return results


def _operands(inside: Sequence[fx.Node], more: Iterable[fx.Node]) -> list[fx.Node]:
    """What a step reads from outside, and ``more``, each once."""
    members = set(inside)
    read = [source for node in inside for source in node.all_input_nodes if source not in members]
    return list(dict.fromkeys([*read, *more]))


class _Side:
    """Builds one side of a branch."""

    def __init__(self, root: fx.GraphModule, operands: Sequence[fx.Node]) -> None:
        self._root, self._graph = root, fx.Graph()
        self._made: dict[fx.Node, fx.Node] = {}
        for node in operands:
            placeholder = self._made[node] = self._graph.placeholder(node.name)
            placeholder.target = placeholder.name
            placeholder.meta["val"] = node.meta.get("val")

    def of(self, node: fx.Node) -> fx.Node:
        """This side's counterpart of a node of the root."""
        return self._made[node]

    def copy(self, nodes: Iterable[fx.Node]) -> None:
        """Take over ``nodes`` of the root, in order."""
        for node in nodes:
            copied = self._made[node] = self._graph.node_copy(node, self._made.__getitem__)
            copied.meta = copy.copy(node.meta)

    def clone(self, node: fx.Node) -> fx.Node:
        """A fresh tensor with the value of a node of the root."""
        own = self._graph.call_function(aten.clone.default, (self._made[node],))
        own.meta["val"] = node.meta["val"]
        return own

    def number(self, value: float, like: fx.Node) -> fx.Node:
        """``value`` as a tensor on the host."""
        return number(self._graph, value, like.meta["val"])

    def extrapolated(self, latest: fx.Node, at: fx.Node, line: Sequence[fx.Node]) -> fx.Node:
        """The line through the latest two predictions at sigma ``at``."""
        latest_at, previous, previous_at = (self._made[node] for node in line)
        weight = weight_of(self._graph, at, latest_at, previous_at)
        call = self._graph.call_module(EXTRAPOLATE, (self._made[latest], previous, weight))
        call.meta["val"] = (latest.meta["val"],)
        result = self._graph.call_function(operator.getitem, (call, 0))
        result.meta["val"] = latest.meta["val"]
        return result

    def finished(self, outputs: Sequence[fx.Node]) -> fx.GraphModule:
        """The side as a module of its own; regions that it calls are those of the root."""
        self._graph.output(tuple(outputs))
        called = {str(node.target) for node in self._graph.nodes if node.op == "call_module"}
        side = fx.GraphModule({name: self._root.get_submodule(name) for name in called}, self._graph)
        side.meta["lightint"] = {"kind": "branch"}
        return side
