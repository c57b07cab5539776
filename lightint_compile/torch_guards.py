"""Guards of Dynamo's: of which kind one is, and those of one call of a function made again for another call of it."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch

from lightint_compile.trace_parts import UnkeepableError


def kind_of(guard: Any) -> str:
    """The name of the method of Dynamo's that makes a guard."""
    builder = importlib.import_module("torch._dynamo.guards").GuardBuilder
    make = guard.inner_create_fn()
    name: str = getattr(make, "__name__", "")
    if getattr(builder, name, None) is not make:
        raise UnkeepableError(f"a guard on {guard.name} is none of Dynamo's own")
    return name


class GuardsAgain:
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
        other = _OtherCall(tx, _Renamed(replaced))
        for guard in guards:
            other.guard(guard)
        for source in dict.fromkeys(guard.originating_source for guard in guards):
            other.guard_one_object(source)
        tx.output.guard_on_key_order.update(map(other.renamed, ordered))


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


class _OtherCall:
    """The call that guards are made again for.

    Args:
        renamed: gives a source of the call that was traced as it is in this one.
    """

    def __init__(self, tx: Any, renamed: Callable[[Any], Any]) -> None:
        self._tx, self.renamed = tx, renamed
        self._scope = {"G": tx.output.root_tx.f_globals, "L": tx.output.root_tx.f_locals}
        self._values: dict[Any, Any] = {}

    def guard(self, guard: Any) -> None:
        """Make a guard again, unless it is on something that both calls have."""
        source = self.renamed(guard.originating_source)
        if source == guard.originating_source:
            return
        if kind_of(guard) == "TENSOR_MATCH":  # it goes with sizes and strides that are remembered elsewhere
            builder: Any = importlib.import_module("torch._dynamo.variables.builder").VariableBuilder
            builder(self._tx, source)(self._value(source))
            return
        again = source.make_guard(self._created(guard.create_fn))
        again._force_dict_keys_match = guard._force_dict_keys_match
        again.stack, again.user_stack = guard.stack, guard.user_stack  # to find the lines anew takes longer than this
        self._tx.output.guards.add(again, collect_debug_stack=False)

    def guard_one_object(self, source: Any) -> None:
        """Where both calls have one object of the user's there, a plain trace guards that they do."""
        again = self.renamed(source)
        value = self._value(again)
        if again == source or value is not self._value(source) or isinstance(value, _NOT_OF_USER):
            return
        guards: Any = importlib.import_module("torch._dynamo.guards")
        make = functools.partial(guards.GuardBuilder.DUPLICATE_INPUT, source_b=source)
        self._tx.output.guards.add(again.make_guard(make), collect_debug_stack=False)

    def _value(self, source: Any) -> Any:
        return source.get_value(self._scope, {}, self._values)

    def _created(self, create: Any) -> Any:
        """What makes a guard, with the sources that it names besides renamed too."""
        if not isinstance(create, functools.partial):
            return create
        source: Any = importlib.import_module("torch._guards").Source

        def again(value: Any) -> Any:
            return self.renamed(value) if isinstance(value, source) else value

        named = {name: again(value) for name, value in create.keywords.items()}
        return functools.partial(create.func, *map(again, create.args), **named)


_NOT_OF_USER = (bool, int, float, complex, str, bytes, type(None), type, FunctionType, torch.dtype, torch.device)
