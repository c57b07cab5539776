"""Dynamo's way through a function that is called again: what it became before, and the guards of that for this call.

Torch 2.14 gives a ``nested_compile_region`` that is called again what an earlier call of it became, where structure,
layouts and constants are the same and every guard that the trace left holds for the other call. Two things are added
here. Functions are such regions while a trace lasts and nothing is marked, so that guards on functions and classes are
about what is there when the compiled code is called. And the guards of a call that was traced are made for every call
that takes what it became: torch looks at them once, which is enough for a trace that is only read.

All that this needs of Dynamo's private names is here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any

import torch
import torch.fx as fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from lightint_compile.torch_guards import GuardsAgain

Look = Callable[[Sequence[fx.Node]], None]
"""Is shown the tensors and sizes that a region is called with; it may raise."""

_VARIANTS = 64
"""Different bodies of one function that are kept; Dynamo fails where there are more."""

_OURS = "lightint"

_OF_REUSE = ("is_reuse_eligible", "stamp_out_subgraph", "build_input_fingerprint")

Describe = Callable[[object], str | None]
"""The text of a block, equal for those that trace alike; ``None`` for any other object."""


def reuses_regions() -> bool:
    """Whether Dynamo gives a region that is called again what an earlier call of it became."""
    try:
        regions = importlib.import_module("torch._dynamo.variables.invoke_subgraph")
    except ImportError:
        return False
    needed = (*_OF_REUSE, "classify_vt", "InputFingerprint", "build_source_replacement")
    return all(hasattr(regions, name) for name in needed)


def is_region_call(node: fx.Node) -> bool:
    """Whether a node is a call of what :func:`as_regions` made a region."""
    if node.target is not torch.ops.higher_order.invoke_subgraph:
        return False
    options = node.meta.get("custom", {}).get("nested_region_config")
    return getattr(options, "partitioner", None) == _OURS


@contextmanager
def as_regions(functions: Iterable[FunctionType], look: Look, describe: Describe, *, guarded: bool) -> Iterator[None]:
    """Calls of these functions are regions, for as long as it lasts; what is called inside of one is part of it.

    A region that cannot be given to later calls raises: Dynamo by itself would go on and trace every call of it.

    Args:
        functions: methods of modules, as their classes have them.
        describe: torch's own comparison of a later block with the traced one misses guards on modules inside of it,
            so blocks take each other's traces only where this is equal.
        guarded: make the guards of a call for every call that takes what it became. Without it the trace may only be
            read.
    """
    regions: Any = importlib.import_module("torch._dynamo.variables.invoke_subgraph")
    translator: Any = importlib.import_module("torch._dynamo.symbolic_convert").InstructionTranslatorBase
    ways = _Ways(functions, look, describe, GuardsAgain() if guarded else None)
    before = [(regions, name, getattr(regions, name)) for name in _OF_REUSE]
    places = [(translator, "inline_user_function_return"), (_module("higher_order_ops"), "are_same_graph_modules")]
    places.append((_module("hashable").HashableTracker, "__init__"))
    before += [(place, name, getattr(place, name)) for place, name in places]
    ours: tuple[Callable[..., Any], ...]
    ours = (
        *(ways.is_reuse_eligible, ways.stamp_out_subgraph, ways.build_input_fingerprint),
        *(ways.inline_user_function_return, _are_same_graph_modules, ways.looked_up),
    )
    try:
        for (place, name, own), made in zip(before, ours, strict=True):
            setattr(place, name, _around(made, own))
        yield
    finally:
        for place, name, own in before:
            setattr(place, name, own)


def _module(name: str) -> Any:
    return importlib.import_module(f"torch._dynamo.variables.{name}")


def _are_same_graph_modules(own: Any, *args: Any) -> bool:
    """Torch compares constants of bodies by ``==``, where 0.0 is -0.0; each body is kept, as all are put in place."""
    return False


def _around(made: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    """A function, so that it can be a method, which gives ``made`` what stands at its place otherwise."""

    def call(*args: Any, **named: Any) -> Any:
        return made(own, *args, **named)

    return call


class _Ways:
    """What is done at Dynamo's own functions while regions are watched; each is given Dynamo's first."""

    def __init__(
        self, functions: Iterable[FunctionType], look: Look, describe: Describe, guards: GuardsAgain | None
    ) -> None:
        self._marked: dict[CodeType, tuple[FunctionType, FunctionType]] = {}
        for each in functions:
            if each.__code__ in self._marked:  # by which torch tells functions apart
                raise ValueError(f"two methods have the code of {each.__qualname__}")
            self._marked[each.__code__] = each, _marked(each)
        self._look, self._describe, self._guards = look, describe, guards
        self._inside = False

    def inline_user_function_return(
        self, own: Any, tx: Any, function: Any, args: Any, kwargs: Any, *rest: Any, **named: Any
    ) -> Any:
        marked = self._region(tx, function, args)
        if marked is None:
            return own(tx, function, args, kwargs, *rest, **named)
        utils: Any = importlib.import_module("torch._dynamo.utils")
        self._inside = True
        try:
            return utils.build_invoke_subgraph_variable().call_function(tx, [marked, *args], kwargs)
        finally:
            self._inside = False

    def _region(self, tx: Any, function: Any, args: Sequence[Any]) -> Any:
        """What stands for a method of a module that is to be a region; ``None`` for any other call."""
        functions: Any = importlib.import_module("torch._dynamo.variables.functions")
        modules: Any = importlib.import_module("torch._dynamo.variables.nn_module")
        known = (functions.UserFunctionVariable, functions.UserMethodVariable)
        if self._inside or type(function) not in known or tx.output.current_tracer.parent is not None:
            return None
        own, marked = self._marked.get(function.get_code(), (None, None))
        if own is not function.get_function() or own is None:
            return None
        if not args or not isinstance(args[0], modules.UnspecializedNNModuleVariable):
            return None
        return functions.UserFunctionVariable(marked, source=function.get_source())

    def looked_up(self, own: Any, tracker: Any, variable: Any) -> None:
        """A key of a dictionary or a set: no guard on a block says what is kept for it there."""
        value = getattr(variable, "value", None)
        if self._inside and isinstance(value, torch.nn.Module) and self._describe(value) is not None:
            raise ValueError("what a block computes depends on which one it is")
        own(tracker, variable)

    def is_reuse_eligible(self, own: Any, tx: Any, body: Any, fingerprint: Any, *rest: Any, **named: Any) -> bool:
        plain: Any = importlib.import_module("torch._dynamo.variables").TensorVariable
        if not own(tx, body, fingerprint, *rest, **named) or any(type(each) is not plain for each in _results_of(body)):
            raise ValueError("a region takes or gives what cannot be told apart, or changes objects")
        if any(free_unbacked_symbols(each.as_proxy().node.meta["example_value"]) for each in _results_of(body)):
            raise ValueError("a region gives a size that depends on data")  # another call has another one
        self._look(_operands_of(fingerprint))
        if self._guards is not None:
            self._guards.traced(tx, fingerprint)
        return True

    def build_input_fingerprint(self, own: Any, tx: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The leaves of a region's arguments, and all that has to be equal for calls that take one body.

        Dynamo flattens more than tuples and lists by tracing the code of pytree, which takes as long as all the rest of
        a call that is reused; here nothing else is taken.
        """
        regions: Any = importlib.import_module("torch._dynamo.variables.invoke_subgraph")
        leaves: list[Any] = []
        structure = [self._structure(regions, value, leaves) for value in (*args, *kwargs.values())]
        objects = [value.value if tag.value == "object" else None for tag, value in leaves]
        first = [next(j for j, other in enumerate(objects) if other is each) for each in objects]
        sources = [getattr(value, "source", None) for _, value in leaves]
        return regions.InputFingerprint(
            leaves, sources, False, (tuple(structure), len(args), tuple(kwargs), tuple(first), _state())
        )

    def _structure(self, regions: Any, value: Any, leaves: list[Any]) -> Any:
        """The structure of one argument, whose leaves are added to ``leaves``."""
        variables: Any = importlib.import_module("torch._dynamo.variables")
        value = value.realize() if isinstance(value, variables.LazyVariableTracker) else value
        if type(value) in (variables.TupleVariable, variables.ListVariable, variables.NamedTupleVariable):
            parts = tuple(self._structure(regions, part, leaves) for part in value.items)
            return getattr(value, "tuple_cls", type(value)), parts
        tag = regions.classify_vt(value)
        if tag is None or (tag.value == "tensor" and type(value) is not variables.TensorVariable):
            raise ValueError("a region takes what cannot be told apart")
        leaves.append((tag, value))
        return tag.value, self._told(tag.value, value)

    def _told(self, tag: str, value: Any) -> Any:
        """What else has to be equal of a leaf: torch compares layouts, and numbers by ``==``."""
        if tag == "object":
            text = self._describe(value.value)
            return ("identity", id(value.value)) if text is None else text
        if tag == "constant":
            return type(value.value), repr(value.value)
        source = getattr(value, "source", None)
        return None if source is None else source.name

    def stamp_out_subgraph(self, own: Any, tx: Any, fingerprint: Any, cached: Any) -> Any:
        self._look(_operands_of(fingerprint))
        given = own(tx, fingerprint, cached)
        if self._guards is not None:
            self._guards.given(tx, cached.arg_sources, fingerprint.arg_sources)
        return given


def _marked(method: FunctionType) -> FunctionType:
    """The same function as an object of its own, with what torch looks for on a region."""
    marks: Any = importlib.import_module("torch._higher_order_ops.invoke_subgraph")
    options = marks.NestedCompileRegionOptions(partitioner=_OURS)
    copy = FunctionType(method.__code__, method.__globals__, method.__name__, method.__defaults__, method.__closure__)
    copy.__kwdefaults__ = method.__kwdefaults__
    copy.__dict__.update(method.__dict__)
    marks.mark_compile_region(copy, options=options, max_reuse_entries=_VARIANTS)
    return copy


def _results_of(body: Any) -> Sequence[Any]:
    """What a region gives, as Dynamo's variables."""
    results: Sequence[Any] = getattr(body, "items", (body,))
    return results


def _state() -> tuple[Any, ...]:
    """Switches of this thread that a trace depends on and that may change between two calls of a function."""
    casts = [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    return (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device(), *casts)


def _operands_of(fingerprint: Any) -> list[fx.Node]:
    """The nodes of tensors and sizes among the arguments of a region, as often as they are given."""
    return [value.as_proxy().node for tag, value in fingerprint.flat_vts if tag.value in ("tensor", "symnode")]
