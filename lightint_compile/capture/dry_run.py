"""Dynamo's trace of a call, to be read; it leaves no trace in the process.

``torch.compile`` files what it makes under the code it traced and remembers sizes it has seen. A dry run must do
neither: the compiled modules of the process, their reports and what Dynamo knows about changing sizes stay as they
are.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.fx as fx
from torch._C._dynamo.eval_frame import reset_code
from torch._dynamo import convert_frame, pgo
from torch._dynamo.utils import get_metrics_context
from torch._guards import CompileContext, TracingContext, compile_context
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from lightint_compile.errors import InputError, did_you_mean

Dynamic = Mapping[str, int | Sequence[int]]
"""Argument name to the dimension (or dimensions) whose size is symbolic."""

Reader = Callable[[fx.GraphModule, Sequence[Any]], object]
"""Is shown a captured graph and what it would be called with, while the trace is under way."""


def trace_once(
    module: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    read: Reader,
    *,
    whole: bool = True,
) -> None:
    """Trace a call as one graph and show it to ``read``; the call is not run and nothing is compiled.

    Args:
        whole: without it, a graph that ends in a break is shown too; nothing of what follows is.

    Raises:
        TorchDynamoException: the call does not trace as one graph (or no graph can begin, without ``whole``).
        Exception: whatever ``read`` raised.
    """
    failures: list[Exception] = []

    def backend(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> fx.GraphModule:
        modes.update(_modes_of(graph_module))
        try:
            read(graph_module, inputs)
        except Exception as error:
            failures.append(error)
        return graph_module

    modes: set[FakeTensorMode] = set()
    try:
        with undisturbed():
            _trace(_plain(module), tuple(args), dict(kwargs), backend, whole)
    finally:
        for mode in modes:
            _let_go(mode)
    if failures:
        raise failures[0]


def _modes_of(graph_module: fx.GraphModule) -> set[FakeTensorMode]:
    """The modes of a trace: the one that the backend is given, and the one that Dynamo traced with."""
    values = [node.meta.get("example_value") for node in graph_module.graph.nodes]
    given = TracingContext.get().fake_mode
    return {value.fake_mode for value in values if isinstance(value, FakeTensor)} | ({given} if given else set())


def _let_go(mode: FakeTensorMode) -> None:
    """Forget which tensors a trace has seen: ``torch.utils.swap_tensors`` takes none that is referred to weakly.

    Reports and programs keep the mode of their trace. ``torch.compile`` lets go in the same way.
    """
    seen = mode.fake_tensor_converter.meta_converter.describer
    seen.lookup_tensor.clear()
    seen.lookup_storage.clear()


def _plain(module: Callable[..., Any]) -> Callable[..., Any]:
    """What Dynamo can open: a module, a function or a method. A callable object is called by a function."""
    if isinstance(module, torch.nn.Module) or inspect.isfunction(module) or inspect.ismethod(module):
        return module
    return lambda *args, **kwargs: module(*args, **kwargs)


def _trace(
    module: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], backend: Any, whole: bool
) -> None:
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
            one_graph=whole,
            restart_reasons=set(),
        )


@contextmanager
def undisturbed() -> Iterator[None]:
    """What is traced or compiled inside starts from nothing and is forgotten at the end.

    Code that was compiled before keeps what was made for it, and one further entry for every graph compiled inside.
    """
    with convert_frame.compile_lock:  # what is put aside belongs to the process: no other thread compiles meanwhile
        yield from _undisturbed()


def _undisturbed() -> Iterator[None]:
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
        InputError: as of :func:`named_dimensions`.
    """
    marked = named_dimensions(module, args, kwargs, dynamic)
    with marks_kept([tensor for tensor, _ in marked.values()]):
        for tensor, axes in marked.values():
            torch._dynamo.mark_dynamic(tensor, axes)
        yield


@contextmanager
def marks_kept(tensors: Iterable[Any]) -> Iterator[None]:
    """What is marked on tensors while the context lasts is forgotten behind it."""
    saved = [(vars(tensor), {key: copy.copy(value) for key, value in vars(tensor).items()}) for tensor in tensors]
    try:
        yield
    finally:
        for attributes, before in saved:
            attributes.clear()
            attributes.update(before)


def named_dimensions(
    module: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], dynamic: Dynamic
) -> dict[str, tuple[torch.Tensor, tuple[int, ...]]]:
    """The tensor argument that each name of ``dynamic`` means, and its axes counted from the front.

    Raises:
        InputError: a name that is no tensor argument of the call, an axis that the tensor lacks, or one whose size in
            this call is 0 or 1: such a size is never symbolic.
    """
    if not isinstance(dynamic, Mapping):
        fix = 'for example dynamic={"history": 2}'
        raise InputError(f"{dynamic!r} names no dimensions", where="dynamic", why="it is no mapping", fix=fix)
    if not dynamic:
        return {}
    call = bound_arguments(module, args, kwargs)
    tensors = {name: value for name, value in call.items() if isinstance(value, torch.Tensor)}
    found = {}
    for name, given in dynamic.items():
        if name not in tensors:
            what = f"it is {type(call[name]).__name__}" if name in call else "the call has no such argument"
            raise InputError(
                f"{name!r} is not a tensor argument of the call",
                where=f"dynamic[{name!r}]",
                why=what,
                fix=did_you_mean(str(name), tensors) if tensors else "the call has no tensor argument",
            )
        found[name] = (tensors[name], _axes(name, given, tensors[name]))
    return found


def bound_arguments(module: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name; those of ``**kwargs`` among them.

    Raises:
        InputError: the call does not fit the signature.
    """
    signature = inspect.signature(module.forward if isinstance(module, torch.nn.Module) else module)
    try:
        bound = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        name = type(module).__name__ if isinstance(module, torch.nn.Module) else getattr(module, "__name__", "function")
        fix = f"it takes {signature}"
        raise InputError("the arguments do not fit the call", where=name, why=str(error), fix=fix) from error
    rest = [name for name, each in signature.parameters.items() if each.kind is inspect.Parameter.VAR_KEYWORD]
    for name in rest:
        bound.update(bound.pop(name, {}))
    return dict(bound)


def _axes(name: str, given: Any, tensor: torch.Tensor) -> tuple[int, ...]:
    axes = tuple(given) if isinstance(given, (tuple, list, set, frozenset, range)) else (given,)
    where, rank = f"dynamic[{name!r}]", tensor.dim()
    for axis in axes:
        if not isinstance(axis, int) or isinstance(axis, bool):
            raise InputError(f"{axis!r} is no axis", where=where, why="expected a whole number, or several", fix="0")
        if not -rank <= axis < rank:
            why = f"{name} has {rank} axes: {list(tensor.shape)}"
            fix = f"name axes from 0 to {rank - 1}" if rank else "leave it out: it has no sizes"
            raise InputError(f"{name!r} has no axis {axis}", where=where, why=why, fix=fix)
        if tensor.shape[axis] in (0, 1):
            why = f"its size in this call is {tensor.shape[axis]}, and PyTorch never makes a size of 0 or 1 symbolic"
            raise InputError(f"axis {axis} of {name!r} cannot be symbolic", where=where, why=why, fix=_LARGER)
    return tuple(axis % rank for axis in axes)


_LARGER = "give an example with a size of 2 or more on that axis"
