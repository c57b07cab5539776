"""Decisions of a program as inputs, and what later chunks need of it as outputs: a file has no driver.

Who runs the file decides, by rules of its own or ours, and hands the decision in. The drift check of a
reused step stays in the program, because it reads an activation.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.capture.alone import traced_alone
from lightint_compile.errors import ExportError
from lightint_compile.passes.ir.decision_points import (
    KeepPoint,
    PlanPoint,
    PredictedPoint,
    RecallPoint,
    StepPoint,
    VisitPoint,
    point_of,
)
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.passes.ir.program import InputKind, Program, ProgramInput, fake_mode_of
from lightint_compile.passes.ir.remarks import source_of
from lightint_compile.runtime.drift import relative_change

aten = torch.ops.aten

DRIFT = "largest_drift"
"""The input that says at which relative change a step is still reused."""


@dataclass(frozen=True)
class StateInput:
    """An input that a decision became.

    Attributes:
        name: of the argument.
        value: a fake tensor of its shape, dtype and device.
        meaning: one line for the caller.
        default: the number it has where nothing is decided; ``None`` for tensors that depend on the call.
    """

    name: str
    value: torch.Tensor
    meaning: str
    default: float | bool | None = None


@dataclass
class Opened:
    """A program without decision points.

    Attributes:
        inputs: what the caller decides, in the order of the arguments.
        outputs: names of further results, and what each is.
        policy: the rules that the program was written for; ``None`` where it decides nothing.
        history: the latents [B, C, F, h, w] whose frames are chosen from; ``None`` where none are.
    """

    program: Program
    inputs: list[StateInput] = field(default_factory=list)
    outputs: dict[str, str] = field(default_factory=dict)
    policy: Policy | None = None
    history: torch.Tensor | None = None

    @property
    def decides(self) -> bool:
        """Whether the caller has something to decide."""
        return self.policy is not None


def opened(program: Program) -> Opened:
    """``program`` with its decisions as inputs; it is changed in place.

    Raises:
        ExportError: a batch whose elements are decided each by itself.
    """
    return _Opening(program).run()


class _Opening:
    def __init__(self, program: Program) -> None:
        self._program, self._found = program, Opened(program)
        self._module, self._graph = program.graph_module, program.graph
        self._placeholders: dict[str, fx.Node] = {}
        self._results: dict[str, fx.Node] = {}

    def run(self) -> Opened:
        points = [(node, point_of(self._module, node)) for node in self._graph.nodes]
        for node, point in points:
            if point is not None:
                self._open(node, point)
        for node, point in reversed(points):
            if point is not None:
                self._drop(node)
        if self._results:
            output = self._graph.output_node()
            output.args = ((*output.args[0], *self._results.values()),)  # type: ignore[misc]
        self._graph.lint()
        self._module.recompile()
        self._program.changed()
        return self._found

    def _open(self, node: fx.Node, point: Any) -> None:
        if isinstance(point, PlanPoint):
            self._found.policy = point.policy
            self._plan(node, point.policy)
        elif isinstance(point, StepPoint):
            self._step(node, point)
        elif isinstance(point, RecallPoint):
            value = node.meta["val"]
            meaning = f"values of the frames in slots, for layer {point.site}: [..., slots, ...]"
            node.replace_all_uses_with(self._input(f"kept_{point.site}", value, meaning))
        elif isinstance(point, KeepPoint):
            self._output(f"fresh_{point.site}", node.args[1], f"values of fresh_frames, for layer {point.site}")
        elif isinstance(point, VisitPoint):
            self._found.policy = point.policy
            self._visit(node, point)
        elif isinstance(point, PredictedPoint):
            self._output("prediction", node.args[1], "what the step predicted; keep the two latest computed ones")
        else:
            raise ExportError("a decision has no form as an input", where=source_of(node) or node.name)

    def _plan(self, node: fx.Node, policy: Policy) -> None:
        if len(node.args) > 1 and isinstance(node.args[1], fx.Node):
            self._found.history = node.args[1].meta["val"]
        context = ("context_frames", "frames of the history that are read as context, ascending")
        asked = ("asked_places", "of the frames that the memory asks for, the places of those that are gathered")
        inputs = {
            0: context if policy.asked_every is None else asked,
            2: ("fresh_frames", "the end of context_frames: frames whose keys and values are computed"),
            3: ("kept_slots", "where the values of the context frames before those are"),
        }
        for user in list(node.users):
            place = user.args[1]
            if user.target is operator.getitem and place in inputs and user.users:
                name, meaning = inputs[place]  # type: ignore[index]
                user.replace_all_uses_with(self._input(name, user.meta["val"], meaning))

    def _step(self, node: fx.Node, point: StepPoint) -> None:
        if point.each:
            raise ExportError(
                "elements of a batch that are decided each by itself cannot be exported",
                where=source_of(node) or node.name,
                why="a file has one branch for all of the batch",
                fix="export a batch of one",
            )
        meaning = f"whether step {point.step} may be reused"
        reused = self._input(f"reuse_step_{point.step}", self._flag(), meaning, default=False)
        if point.drift is not None:
            reused = self._unless_drifted(node, reused, point.drift, *node.args[1:3])
        node.replace_all_uses_with(reused)
        self._output(f"reused_step_{point.step}", reused, f"whether step {point.step} was reused")

    def _visit(self, node: fx.Node, point: VisitPoint) -> None:
        reused = self._input("reuse_step", self._flag(), "whether this step may be reused", default=False)
        if point.drift is not None:
            now = node.args[3]
            assert isinstance(now, fx.Node)
            before = self._input("first_before", now.meta["val"], "first_block of the latest computed step")
            self._output("first_block", now, "what the first block gave")
            reused = self._unless_drifted(node, reused, point.drift, now, before)
        line = ("latest", "previous", "weight")
        meanings = ("the latest computed prediction", "the one before", "(latest - previous) * weight is added to it")
        for user in list(node.users):
            place = user.args[1]
            if place == 0:
                user.replace_all_uses_with(reused)
            elif isinstance(place, int) and place > 1:
                name, meaning = line[place - 2], meanings[place - 2]
                user.replace_all_uses_with(self._input(name, user.meta["val"], meaning))
        self._output("reused_step", reused, "whether the step was reused")

    def _unless_drifted(self, node: fx.Node, asked: fx.Node, drift: float, now: Any, before: Any) -> fx.Node:
        """``asked``, unless the activation changed by more than the limit."""
        with fake_mode_of(self._graph.nodes):
            number = torch.empty((), dtype=torch.float32)
        meaning = f"relative change of an activation up to which a step is reused; the options say {drift}"
        limit = self._input(DRIFT, number, meaning, drift)
        values = [each.meta["val"] for each in (asked, now, before, limit)]
        with fake_mode_of(self._graph.nodes):
            traced = traced_alone(torch.func.functionalize(_may_reuse), values)
        made = dict(zip(traced.graph.find_nodes(op="placeholder"), (asked, now, before, limit), strict=True))
        with self._graph.inserting_before(node):
            return self._inlined(traced.graph, made)

    def _inlined(self, graph: fx.Graph, made: dict[fx.Node, fx.Node]) -> fx.Node:
        for each in graph.nodes:
            if each.op == "output":
                return made[each.args[0]]
            if each not in made:
                made[each] = self._graph.node_copy(each, made.__getitem__)
                made[each].meta = {"val": each.meta["val"]}
        raise AssertionError("a graph without an output")

    def _flag(self) -> torch.Tensor:
        with fake_mode_of(self._graph.nodes):
            return torch.empty((), dtype=torch.bool)

    def _input(self, name: str, value: torch.Tensor, meaning: str, default: float | bool | None = None) -> fx.Node:
        """A further placeholder; asked again it is the same."""
        if name in self._placeholders:
            return self._placeholders[name]
        last = [node for node in self._graph.nodes if node.op == "placeholder"][-1]
        with self._graph.inserting_after(last):
            made = self._placeholders[name] = self._graph.placeholder(name)
        made.target = made.name
        made.meta["val"] = value
        self._program.inputs = (*self._program.inputs, ProgramInput(made.name, InputKind.TENSOR, name))
        self._found.inputs.append(StateInput(name, value, meaning, default))
        return made

    def _output(self, name: str, node: Any, meaning: str) -> None:
        self._results[name] = node
        self._found.outputs[name] = meaning

    def _drop(self, node: fx.Node) -> None:
        for user in list(node.users):
            assert not user.users, f"{user} still reads a decision"
            self._graph.erase_node(user)
        self._graph.erase_node(node)


def _may_reuse(asked: torch.Tensor, now: torch.Tensor, before: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    drift = relative_change(now, before).amax(0)
    return asked & (drift.to(limit.device) <= limit)
