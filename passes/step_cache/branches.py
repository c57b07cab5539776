"""Branches around denoising steps: ``cond(reused, reuse, compute, operands)`` with one graph for each side.

Both sides take the same operands and return the same tuple, fresh tensors all: the step's predictions, and what the
next guarded step needs to know of the steps computed so far. Of a batch whose elements may go separate ways there are
two more sides, for one element (:mod:`~passes.step_cache.per_element`).
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.ir.decision_points import DecisionPoint, StepPoint
from lightint_compile.passes.ir.ranks import group_of
from lightint_compile.passes.step_cache.branch_bodies import Side, attributes_of
from lightint_compile.passes.step_cache.per_element import EACH, Apart
from lightint_compile.passes.step_cache.reuse import Hold, Past
from lightint_compile.passes.step_cache.steps import StepBody


class GuardedSteps:
    """Rewrites the root of a program, step by step.

    Args:
        bodies: the steps of the loop.
        record: what the plan of the chunk gave.
        reuse: what a reused step gives.
        drift: as of :class:`StepPoint`.
        apart: makes the bodies for one element; ``None`` where all of the batch shares a decision.
    """

    def __init__(
        self,
        root: fx.GraphModule,
        bodies: Sequence[StepBody],
        record: fx.Node,
        reuse: Hold,
        drift: float | None,
        apart: Apart | None = None,
    ) -> None:
        self._root, self._bodies = root, bodies
        self._record, self._reuse, self._drift, self._apart = record, reuse, drift, apart

    def rewrite(self) -> None:
        """Put a branch around every step between the first and the last."""
        past = self._reuse.prepare(self._root)
        last = len(self._bodies) - 2
        for step in range(1, last + 1):
            past = self._guard(step, past, keeps=step < last)

    def _guard(self, step: int, past: Past, keeps: bool) -> Past:
        """Put a branch around one step; with ``keeps`` it hands on the past for the next guarded step."""
        body, graph = self._bodies[step], self._root.graph
        inside = body.tail if self._reuse.runs_first_block else body.nodes
        now = self._reuse.first(body)
        operands = operands_of(inside, (*past.nodes, *now))
        with graph.inserting_before(inside[-1]):
            reused = self._ask(step, (*now, *past.first))
            reuse, compute = Side(self._root, operands), Side(self._root, operands)
            results = [self._reuse.predictions(step, past, reuse), computed(body, inside, compute)]
            if keeps:
                results[0] += self._reuse.kept_by_reuse(past, reuse)
                results[1] += self._reuse.kept_by_compute(step, past, compute)
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
        if self._apart is not None and self._drift is not None:
            self._apart.check_watched(watched)
        self._root.add_submodule(name, DecisionPoint(self._point(step)))
        operands = (self._record, *watched) if self._drift is not None else (self._record,)
        asked = self._root.graph.create_node("call_module", name, operands, name=f"step_{step}_reused")
        asked.meta["val"] = False
        return asked

    def _point(self, step: int) -> StepPoint:
        return StepPoint(step, self._drift, self._apart is not None, group_of(self._root))

    def _call(
        self, step: int, reused: fx.Node, sides: tuple[fx.GraphModule, fx.GraphModule], operands: Sequence[fx.Node]
    ) -> list[fx.Node]:
        graph, names = self._root.graph, [f"step_{step}_reuse", f"step_{step}_compute"]
        target: Any
        args: tuple[Any, ...]
        if self._apart is None:
            attributes = attributes_of(self._root, names, sides)
            target, args = torch.ops.higher_order.cond, (reused, *attributes, tuple(operands))
        else:
            one, known = self._apart.sides(*sides, operands)
            names += [f"{name}_row" for name in names]
            attributes = attributes_of(self._root, names, (*sides, one.reuse, one.compute))
            target, args = EACH, (reused, *attributes, one.splits, one.joins, tuple(operands))
        call = graph.create_node("call_function", target, args, name=f"step_{step}")
        call.meta["val"] = tuple(node.meta["val"] for node in sides[1].graph.output_node().args[0])  # type: ignore[union-attr]
        results = [graph.call_function(operator.getitem, (call, place)) for place in range(len(call.meta["val"]))]
        for result, value in zip(results, call.meta["val"], strict=True):
            result.meta["val"] = value
        if self._apart is not None:
            self._apart.learn(dict(zip(results, known, strict=True)))
        return results


def computed(body: StepBody, inside: Sequence[fx.Node], side: Side) -> list[fx.Node]:
    """The step's predictions, as the model makes them."""
    side.copy(inside)
    return [side.of(node) for node in body.predictions]


def operands_of(inside: Sequence[fx.Node], more: Iterable[fx.Node]) -> list[fx.Node]:
    """What a step reads from outside, and ``more``, each once."""
    members = set(inside)
    read = [source for node in inside for source in node.all_input_nodes if source not in members]
    return list(dict.fromkeys([*read, *more]))
