"""Dynamo's way through a function that is called again: what it became before, and the guards of that for this call.

Torch 2.14 gives a ``nested_compile_region`` that is called again what an earlier call of it became, where structure,
layouts and constants are the same and every guard that the trace left holds for the other call. Two things are added
here. Functions are such regions while a trace lasts and nothing is marked, so that guards on functions and classes are
about what is there when the compiled code is called. And the guards of a call that was traced are made for every call
that takes what it became: torch looks at them once, which is enough for a trace that is only read.

All that this needs of Dynamo's private names is here.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any

import torch
import torch.fx as fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

Look = Callable[[Sequence[fx.Node]], None]
"""Is shown the tensors and sizes that a region is called with; it may raise."""

_VARIANTS = 64
"""Different bodies of one function that are kept; Dynamo fails where there are more."""

_OURS = "lightint"

_OF_REUSE = ("is_reuse_eligible", "stamp_out_subgraph", "build_fingerprint_with_pytree")


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
def as_regions(functions: Iterable[FunctionType], look: Look, *, guarded: bool) -> Iterator[None]:
    """Calls of these functions are regions, for as long as it lasts; what is called inside of one is part of it.

    A region that cannot be given to later calls raises: Dynamo by itself would go on and trace every call of it.

    Args:
        functions: methods of modules, as their classes have them.
        guarded: make the guards of a call for every call that takes what it became. Without it the trace may only be
            read.
    """
    regions: Any = importlib.import_module("torch._dynamo.variables.invoke_subgraph")
    translator: Any = importlib.import_module("torch._dynamo.symbolic_convert").InstructionTranslatorBase
    ways = _Ways(functions, look, _Guards() if guarded else None)
    before = [(regions, name, getattr(regions, name)) for name in _OF_REUSE]
    before.append((translator, "inline_user_function_return", translator.inline_user_function_return))
    ours: tuple[Callable[..., Any], ...]
    ours = (ways.is_reuse_eligible, ways.stamp_out_subgraph, _fingerprint_or, ways.inline_user_function_return)
    try:
        for (place, name, own), made in zip(before, ours, strict=True):
            setattr(place, name, _around(made, own))
        yield
    finally:
        for place, name, own in before:
            setattr(place, name, own)


def _around(made: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    """A function, so that it can be a method, which gives ``made`` what stands at its place otherwise."""

    def call(*args: Any, **named: Any) -> Any:
        return made(own, *args, **named)

    return call


class _Ways:
    """What is done at Dynamo's own functions while regions are watched; each is given Dynamo's first."""

    def __init__(self, functions: Iterable[FunctionType], look: Look, guards: _Guards | None) -> None:
        self._marked: dict[CodeType, FunctionType] = {each.__code__: _marked(each) for each in functions}
        self._look, self._guards = look, guards
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
        marked = self._marked.get(function.get_code())
        if marked is None or not args or not isinstance(args[0], modules.UnspecializedNNModuleVariable):
            return None
        return functions.UserFunctionVariable(marked, source=function.get_source())

    def is_reuse_eligible(self, own: Any, tx: Any, body: Any, fingerprint: Any, *rest: Any, **named: Any) -> bool:
        if not own(tx, body, fingerprint, *rest, **named):
            raise ValueError("a region takes or gives what cannot be told apart, or changes objects")
        if any(map(free_unbacked_symbols, _results_of(body))):
            raise ValueError("a region gives a size that depends on data")  # another call has another one
        self._look(_operands_of(fingerprint))
        if self._guards is not None:
            self._guards.traced(tx, fingerprint)
        return True

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


class _Guards:
    """The guards of calls that were traced, made for the calls that take what those became."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, list[Any], list[Any]]] = {}
        self._done: set[tuple[int, tuple[Any, ...]]] = set()

    def traced(self, tx: Any, fingerprint: Any) -> None:
        """Remember what guards a call that was traced.

        Every guard on what the call was given counts, whoever asked for it: more than what the trace leans on, and
        never less. Dynamo looks at all guards once more when the trace is done.
        """
        sources, graph = set(filter(None, fingerprint.arg_sources)), tx.output
        leaves = zip(fingerprint.flat_vts, fingerprint.arg_sources, strict=True)
        objects = {source for (tag, _), source in leaves if tag.value == "object"}
        sizes = (each for known in graph.shape_env.var_to_sources.values() for each in known)
        if any(map(_Found(objects), sizes)):
            raise ValueError("a number of a module is symbolic")
        of_call = _Found(sources)
        guards = [guard for guard in graph.guards if of_call(guard.originating_source)]
        ordered = [source for source in graph.guard_on_key_order if of_call(source)]
        self._known[id(fingerprint.arg_sources)] = (fingerprint.arg_sources, guards, ordered)

    def given(self, tx: Any, before: Sequence[Any], now: Sequence[Any]) -> None:
        """Make the guards of the call with the sources ``before`` for the one with ``now``."""
        regions: Any = importlib.import_module("torch._dynamo.variables.invoke_subgraph")
        replaced: Mapping[Any, Any] = regions.build_source_replacement(before, now)
        call = (id(before), tuple(now))
        if not replaced or call in self._done:
            return
        self._done.add(call)
        _, guards, ordered = self._known[id(before)]

        renamed = _Renamed(replaced)
        for guard in guards:
            source = renamed(guard.originating_source)
            if source != guard.originating_source:
                _guard_again(tx, guard, source, renamed)
        tx.output.guard_on_key_order.update(map(renamed, ordered))


class _Found:
    """Whether a source is one of ``owners`` or is found by way of one."""

    def __init__(self, owners: Iterable[Any]) -> None:
        self._known = dict.fromkeys(owners, True)

    def __call__(self, source: Any) -> bool:
        if source not in self._known:
            self._known[source] = any(map(self, _parts(source).values()))
        return self._known[source]


class _Renamed:
    """What torch's ``Source.clone`` makes of sources, each prefix made once: a block has some hundred guards."""

    def __init__(self, replaced: Mapping[Any, Any]) -> None:
        self._replaced, self._known = replaced, dict[Any, Any]()

    def __call__(self, source: Any) -> Any:
        if source not in self._known:
            parts = _parts(source)
            again = {name: self(part) for name, part in parts.items()}
            made = source if again == parts else dataclasses.replace(source, **again)
            self._known[source] = self._replaced.get(made, made)
        return self._known[source]


def _parts(source: Any) -> dict[str, Any]:
    """The sources that a source is found by."""
    records: Any = importlib.import_module("torch._guards")
    if not isinstance(source, records.ChainedSource):
        return {}
    fields = {field.name: getattr(source, field.name) for field in dataclasses.fields(source) if field.init}
    return {name: value for name, value in fields.items() if isinstance(value, records.Source)}


def _guard_again(tx: Any, guard: Any, source: Any, renamed: Callable[[Any], Any]) -> None:
    """Make a guard for another source."""
    guards: Any = importlib.import_module("torch._dynamo.guards")
    make = guard.inner_create_fn()
    if getattr(guards.GuardBuilder, getattr(make, "__name__", ""), None) is not make:
        raise ValueError(f"a guard on {guard.name} is none of Dynamo's own")
    if make is guards.GuardBuilder.TENSOR_MATCH:  # it goes with sizes and strides that are remembered elsewhere
        builder: Any = importlib.import_module("torch._dynamo.variables.builder").VariableBuilder
        builder(tx, source)(tx.output.resolve_source_value(source))
        return
    again = source.make_guard(_create_again(guard.create_fn, renamed))
    again._force_dict_keys_match = guard._force_dict_keys_match
    again.stack, again.user_stack = guard.stack, guard.user_stack  # finding the lines anew takes longer than the rest
    tx.output.guards.add(again, collect_debug_stack=False)


def _create_again(create: Any, renamed: Callable[[Any], Any]) -> Any:
    if not isinstance(create, functools.partial):
        return create
    source: Any = importlib.import_module("torch._guards").Source
    given = [renamed(each) if isinstance(each, source) else each for each in create.args]
    named = {name: renamed(each) if isinstance(each, source) else each for name, each in create.keywords.items()}
    return functools.partial(create.func, *given, **named)


def _fingerprint_or(flattened: Any, tx: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The leaves of a region's arguments and their structure.

    Dynamo flattens them by tracing the code of pytree, which takes as long as all the rest of a call that is reused;
    here that is done only where there is more than tuples and lists.
    """
    regions: Any = importlib.import_module("torch._dynamo.variables.invoke_subgraph")
    leaves: list[Any] = []
    structure = [_structure(regions, value, leaves) for value in (*args, *kwargs.values())]
    if None in structure:
        return flattened(tx, args, kwargs)
    sources = [getattr(value, "source", None) for _, value in leaves]
    return regions.InputFingerprint(leaves, sources, False, (tuple(structure), len(args), tuple(kwargs)))


def _structure(regions: Any, value: Any, leaves: list[Any]) -> Any:
    """The structure of one argument, whose leaves are added to ``leaves``; ``None`` for one that is not known here."""
    from torch._dynamo import variables

    value = value.realize() if isinstance(value, variables.LazyVariableTracker) else value
    if type(value) in (variables.TupleVariable, variables.ListVariable, variables.NamedTupleVariable):
        parts = tuple(_structure(regions, part, leaves) for part in value.items)
        return None if None in parts else (getattr(value, "tuple_cls", type(value)), parts)
    tag = regions.classify_vt(value)
    leaves.append((tag, value))
    return None if tag is None else "leaf"


def _results_of(body: Any) -> Iterator[torch.Tensor]:
    """The fake tensors that a region gives."""
    for value in getattr(body, "items", (body,)):
        yield value.as_proxy().node.meta["example_value"]


def _operands_of(fingerprint: Any) -> list[fx.Node]:
    """The nodes of tensors and sizes among the arguments of a region, as often as they are given."""
    return [value.as_proxy().node for tag, value in fingerprint.flat_vts if tag.value in ("tensor", "symnode")]
