"""The graph of a kept trace, traced once more in a call that needs it: where a program fails, or meets new sizes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import CodeType, FrameType
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.capture import ARGUMENTS
from lightint_compile.capture.dry_run import marks_kept
from lightint_compile.compilation import Compilation
from lightint_compile.compiled import CompiledGraph, Form
from lightint_compile.errors import StateError
from lightint_compile.kept_traces.asked import Asked
from lightint_compile.kept_traces.record import Trace
from lightint_compile.torch_compat import compiled_arguments
from lightint_compile.torch_frames import graph_again, is_argument
from lightint_compile.trace_parts import Frame


class GraphAgain:
    """The captured graph of a call whose trace was kept.

    Args:
        code: the code of the kept trace, which is on the stack while its graph is called.
        trace: says which key the graph must have, and which sizes of arguments are symbolic.
    """

    def __init__(self, frame: Frame, asked: Asked, code: CodeType, trace: Trace) -> None:
        self._frame = replace(frame, locals={}, backend=None, cache_entries=())
        self._asked, self._code, self._trace = asked, code, trace
        self._made: tuple[fx.GraphModule, Compilation] | None = None

    def __call__(self, *args: Any) -> Any:
        """Run the graph operation by operation."""
        return self._graph()[0].forward(*args)

    def in_form(self, form: Form) -> CompiledGraph:
        """The compiled graph in another form."""
        return self._graph()[1].in_form(form)

    def region(self, name: str) -> fx.GraphModule:
        """A region of the rewritten graph."""
        return self._graph()[1].region(name)

    def _graph(self) -> tuple[fx.GraphModule, Compilation]:
        """Traced when it is asked for.

        Raises:
            StateError: no call is under way, or the trace is another one this time.
        """
        if self._made is None:
            found: list[tuple[fx.GraphModule, Compilation]] = []
            arguments = self._arguments()
            with _marked([(arguments[name], axes) for name, axes in self._symbolic() if name in arguments]):
                graph_again(self._frame, arguments, lambda graph, inputs: self._taken(graph, inputs, found))
            self._made = found[0]
        return self._made

    def _taken(self, graph: fx.GraphModule, inputs: Sequence[Any], found: list[Any]) -> Any:
        arguments, options = compiled_arguments(), self._asked.options
        graph.meta[ARGUMENTS] = (*dict(options.roles), *dict(options.grids)) if arguments is None else arguments
        compilation = Compilation(graph, inputs, options, self._asked.config)
        if compilation.key() != self._trace.program:
            raise StateError("the call does not trace as it did in an earlier process", fix='options={"traces": False}')
        found.append((graph, compilation))
        return graph.forward

    def _symbolic(self) -> list[tuple[str, list[int]]]:
        layouts = self._trace.traced.conditions.layouts
        sizes = [(source.local_name, layout["size"]) for source, layout in layouts if is_argument(source)]
        return [(name, [axis for axis, size in enumerate(given) if size is None]) for name, given in sizes]

    def _arguments(self) -> dict[str, Any]:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code is not self._code:
            frame = frame.f_back
        if frame is None:
            raise StateError("there is no captured graph", why="its trace was kept by an earlier process")
        names = self._frame.code.co_varnames[: _arguments_of(self._frame.code)] + self._frame.code.co_freevars
        return {name: frame.f_locals[name] for name in names if name in frame.f_locals}


@contextmanager
def _marked(sizes: Sequence[tuple[Any, list[int]]]) -> Iterator[None]:
    """Sizes that were symbolic because they had changed are symbolic while the context lasts."""
    unmarked = [(value, axes) for value, axes in sizes if not hasattr(value, "_dynamo_dynamic_indices")]
    with marks_kept([value for value, _ in unmarked]):
        for value, axes in unmarked:
            for axis in axes:
                torch._dynamo.maybe_mark_dynamic(value, axis)
        yield


def _arguments_of(code: CodeType) -> int:
    return code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)
