"""Dynamo's trace of a call for reading it, with nothing left behind in the process.

``torch.compile`` files what it makes under the code it traced and remembers sizes it has seen. A dry run must do
neither: the compiled modules of the process, their reports and what Dynamo knows about changing sizes stay as they
are.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.fx as fx
from torch._C._dynamo.eval_frame import reset_code
from torch._dynamo import convert_frame, pgo
from torch._dynamo.utils import get_metrics_context
from torch._guards import CompileContext, compile_context

from lightint_compile.errors import CaptureError

Dynamic = Mapping[str, int | Sequence[int]]
"""Argument name to the dimension (or dimensions) whose size is symbolic."""

Reader = Callable[[fx.GraphModule, Sequence[Any]], None]
"""Is shown a captured graph and what it would be called with, while the trace is under way."""


def trace_once(module: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], read: Reader) -> None:
    """Trace a call as one graph and show it to ``read``; the call is not run and nothing is compiled.

    Raises:
        TorchDynamoException: the call does not trace as one graph.
        Exception: whatever ``read`` raised.
    """
    failures: list[Exception] = []

    def backend(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> fx.GraphModule:
        try:
            read(graph_module, inputs)
        except Exception as error:
            failures.append(error)
        return graph_module

    with undisturbed():
        _trace(_plain(module), tuple(args), dict(kwargs), backend)
    if failures:
        raise failures[0]


def _plain(module: Callable[..., Any]) -> Callable[..., Any]:
    """What Dynamo can open: a module, a function or a method. A callable object is called by a function."""
    if isinstance(module, torch.nn.Module) or inspect.isfunction(module) or inspect.ismethod(module):
        return module
    return lambda *args, **kwargs: module(*args, **kwargs)


def _trace(module: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], backend: Any) -> None:
    frame = convert_frame._get_frame(module, args, kwargs)
    identity = convert_frame.get_compile_id({})
    with compile_context(CompileContext(identity)), get_metrics_context():
        convert_frame.compile_frame(
            frame.code,
            frame.globals,
            frame.locals,
            frame.builtins,
            frame.closure,
            compiler_fn=backend,
            one_graph=True,
            restart_reasons=set(),
        )


@contextmanager
def undisturbed() -> Iterator[None]:
    """What is traced or compiled inside starts from nothing and is forgotten at the end.

    Code that was compiled before keeps what was made for it, and one further entry for every graph compiled inside.
    """
    sizes, codes = pgo._CODE_STATE, convert_frame.input_codes
    known = len(codes.seen)
    pgo._CODE_STATE = None
    try:
        yield
    finally:
        pgo._CODE_STATE = sizes
        fresh = [code for reference in codes.seen[known:] if (code := reference()) is not None]
        del codes.seen[known:]
        codes.seen_ids.difference_update(map(id, fresh))
        for code in fresh:
            reset_code(code)


@contextmanager
def sizes_marked(
    module: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], dynamic: Dynamic
) -> Iterator[None]:
    """The dimensions named by ``dynamic`` are marked as symbolic on the tensors of a call, for as long as it lasts.

    Raises:
        CaptureError: a name that is no tensor argument of the call.
    """
    marked = {name: _argument(module, args, kwargs, name) for name in dynamic}
    saved = [
        (vars(tensor), {key: copy.copy(value) for key, value in vars(tensor).items()}) for tensor in marked.values()
    ]
    try:
        for name, tensor in marked.items():
            torch._dynamo.mark_dynamic(tensor, dynamic[name])
        yield
    finally:
        for attributes, before in saved:
            attributes.clear()
            attributes.update(before)


def _argument(module: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], name: str) -> torch.Tensor:
    function = module.forward if isinstance(module, torch.nn.Module) else module
    bound = inspect.signature(function).bind(*args, **kwargs).arguments
    value = bound.get(name)
    if not isinstance(value, torch.Tensor):
        raise CaptureError(
            f"{name!r} is not a tensor argument of the call", where="dynamic", why=f"known: {sorted(bound)}"
        )
    return value
