"""One call of a module whose graphs can be run in any form: as captured, after some of the passes, compiled or not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree

from lightint_compile import capture
from lightint_compile.capture.copies import Invocation, copied, randomness_kept
from lightint_compile.capture.dry_run import undisturbed
from lightint_compile.errors import LightintError, one_line
from lightint_compile.lowering import lower
from lightint_compile.lowering.driver import Driver
from lightint_compile.options import LightintOptions
from lightint_compile.passes.base import Pass
from lightint_compile.passes.ir.program import Program
from lightint_compile.passes.pipeline import Pipeline
from lightint_compile.pipeline_run import rewrite, state
from lightint_compile.torch_marks import eager_calls, parts_uncompiled, uncompiled

Rollout = Callable[[Callable[..., Any]], Any]
"""Calls what it is given, chunk after chunk, and gives the results of all."""

Form = Callable[["CapturedGraph"], Callable[..., Any]]
"""Makes what a graph is run as."""

SEED = 0
"""Of torch's generators before every run."""

_UNLIMITED = partial(torch._dynamo.config.patch, recompile_limit=2**16, accumulated_recompile_limit=2**16)
"""Code that was compiled before keeps a graph of every run; beyond Dynamo's limit the call itself would run."""


@dataclass
class CapturedGraph:
    """One graph of the call.

    Attributes:
        program: as it was captured.
        function: what Dynamo captured.
        options: of the whole.
        args: a copy of what it was called with first.
    """

    program: Program
    function: Callable[..., Any]
    options: LightintOptions
    args: tuple[Any, ...] = ()

    def passes(self) -> tuple[Pass, ...]:
        """The passes that the options ask for, without those that approximate unasked."""
        return Pipeline.parse(rewrite(self.program.snapshot(), self.options).pipeline).passes

    def after(self, passes: Sequence[Pass]) -> Program:
        """The program after some passes."""
        program = self.program.snapshot()
        state(program, self.options)
        Pipeline(tuple(passes)).run(program, strict=True)
        return program

    def driver(self, passes: Sequence[Pass], config: Mapping[str, Any] | None = None) -> Driver:
        """The program after some passes, run operator by operator; with ``config`` by Inductor."""
        options = dataclasses.replace(self.options, delegate="eager" if config is None else "inductor")
        return lower(self.after(passes), options, dict(config or {})).driver


class CapturedCall:
    """A call that is run as often as wanted, each time on fresh copies with the same random numbers.

    What is compiled already, the whole or a part of it, is taken as it was before.

    Args:
        rollout: of many calls, in the place of one; its inputs stay as they are.

    Attributes:
        graphs: those that can be rewritten, in the order in which they were captured; ``None`` for others.
        left: why these are left as they are.
    """

    def __init__(self, call: Invocation, options: LightintOptions, rollout: Rollout | None = None) -> None:
        module, args, kwargs = call
        self._call, self._options, self._rollout = (uncompiled(module), args, kwargs), options, rollout
        self.graphs: list[CapturedGraph | None] = []
        self.left: list[str] = []
        self._begun = 0
        self._form: Form = as_captured

    def exact(self) -> Any:
        """The results of the call without any compiler."""
        with torch.no_grad(), randomness_kept(), eager_calls():
            return self._results(lambda module: module)

    def run(self, form: Form) -> Any:
        """The results of the call, its graphs in this form."""
        self._form, self._begun = form, 0
        backend = partial(self._backend)  # an object of this run: Dynamo runs what it made for one that is equal
        with torch.no_grad(), randomness_kept(), undisturbed(), _UNLIMITED():
            return self._results(partial(torch.compile, backend=backend))

    def _results(self, made: Callable[[Any], Any]) -> Any:
        """What comes of a copy, compiled or not."""
        with parts_uncompiled(self._call[0]):
            module, args, kwargs = copied(*self._call)
        torch.manual_seed(SEED)
        results = made(module)(*args, **kwargs) if self._rollout is None else self._rollout(made(module))
        return pytree.tree_map(_kept, results)

    def _backend(self, graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        number = self._begun
        self._begun += 1
        if number == len(self.graphs):
            self.graphs.append(self._captured(graph_module, inputs))
        graph = self.graphs[number]
        return graph_module.forward if graph is None else partial(_ran, graph, self._form, [])

    def _captured(self, graph_module: fx.GraphModule, inputs: Sequence[Any]) -> CapturedGraph | None:
        try:
            program = capture.from_dynamo(graph_module, inputs)
        except LightintError as error:
            self.left.append(one_line(error))
            return None
        return CapturedGraph(program, graph_module.forward, self._options)


def as_captured(graph: CapturedGraph) -> Callable[..., Any]:
    """The form of a graph that Dynamo captured."""
    return graph.function


def _ran(graph: CapturedGraph, form: Form, made: list[Callable[..., Any]], *args: Any) -> Any:
    """A call of a graph; its form is made at the first, when Dynamo's trace is over."""
    if not graph.args:
        graph.args = tuple(map(_kept, args))
    if not made:
        made.append(form(graph))
    return made[0](*args)


def _kept(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value
