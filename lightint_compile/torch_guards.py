"""Guards of Dynamo's: of which kind one is, and those of one call of a function made again for another call of it."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, cast

import torch

from lightint_compile.trace_parts import UnkeepableError


@functools.cache
def _module(name: str) -> Any:
    return importlib.import_module(name)


def kind_of(guard: Any) -> str:
    """The name of the method of Dynamo's that makes a guard."""
    builder = _module("torch._dynamo.guards").GuardBuilder
    make = guard.inner_create_fn()
    name: str = getattr(make, "__name__", "")
    if getattr(builder, name, None) is not make:
        raise UnkeepableError(f"a guard on {guard.name} is none of Dynamo's own")
    return name


class GuardsAgain:
    """The guards of calls that were traced, made for the calls that take what those became."""

    def __init__(self) -> None:
        self._known: dict[int, _Guarded] = {}
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
        self._known[id(fingerprint.arg_sources)] = _Guarded(fingerprint.arg_sources, guards, ordered)

    def given(self, tx: Any, before: Sequence[Any], now: Sequence[Any]) -> None:
        """Make the guards of the call with the sources ``before`` for the one with ``now``."""
        replaced = _module("torch._dynamo.variables.invoke_subgraph").build_source_replacement(before, now)
        call = (id(before), tuple(now))
        if replaced and call not in self._done:
            self._done.add(call)
            self._known[id(before)].make_for(tx, replaced)


class _Found:
    """Whether a source is one of ``owners`` or is found by way of one."""

    def __init__(self, owners: Iterable[Any]) -> None:
        self._known = dict.fromkeys(owners, True)

    def __call__(self, source: Any) -> bool:
        if source not in self._known:
            self._known[source] = any(map(self, _parts(source).values()))
        return self._known[source]


class _Sources:
    """Sources, each behind those that it is found by: a block has some hundred, renamed for every call of it.

    Attributes:
        all: the sources, and which of their fields are sources, by their places.
    """

    def __init__(self) -> None:
        self.all: list[tuple[Any, Sequence[tuple[str, int]]]] = []
        self._places: dict[Any, int] = {}

    def place(self, source: Any) -> int:
        """Where a source is, which is added where need be."""
        if source not in self._places:
            parts = [(name, self.place(part)) for name, part in _parts(source).items()]
            self._places[source] = len(self.all)
            self.all.append((source, parts))
        return self._places[source]

    def renamed(self, replaced: Mapping[Any, Any]) -> list[Any]:
        """What torch's ``Source.clone`` makes of each; the same object where nothing of it is replaced."""
        made: list[Any] = []
        for source, parts in self.all:
            again = {name: made[part] for name, part in parts if made[part] is not self.all[part][0]}
            other = dataclasses.replace(source, **again) if again else source
            made.append(replaced.get(other, other))
        return made


@functools.cache
def _fields(kind: Any) -> Sequence[str]:
    return [field.name for field in dataclasses.fields(kind) if field.init]


def _parts(source: Any) -> dict[str, Any]:
    """The sources that a source is found by."""
    records = _module("torch._guards")
    if not isinstance(source, records.ChainedSource):
        return {}
    fields = ((name, getattr(source, name)) for name in _fields(cast(Hashable, type(source))))
    return {name: value for name, value in fields if isinstance(value, records.Source)}


@dataclass(frozen=True)
class _Guard:
    """A guard of the call that was traced.

    Attributes:
        place: where its source is.
        of_tensor: it goes with sizes and strides that are remembered elsewhere.
        besides: where the sources are that it names besides.
    """

    guard: Any
    place: int
    of_tensor: bool
    besides: Mapping[Any, int]

    @classmethod
    def of(cls, guard: Any, sources: _Sources) -> _Guard:
        create, source = guard.create_fn, _module("torch._guards").Source
        named = (*create.args, *create.keywords.values()) if isinstance(create, functools.partial) else ()
        besides = {each: sources.place(each) for each in named if isinstance(each, source)}
        return cls(guard, sources.place(guard.originating_source), kind_of(guard) == "TENSOR_MATCH", besides)

    def made(self, renamed: Sequence[Any]) -> Any:
        """The guard of another call."""
        again = renamed[self.place].make_guard(self._create(renamed))
        again._force_dict_keys_match = self.guard._force_dict_keys_match
        again.stack, again.user_stack = self.guard.stack, self.guard.user_stack  # to find the lines anew takes longer
        return again

    def _create(self, renamed: Sequence[Any]) -> Any:
        """What makes it."""
        create = self.guard.create_fn
        if not self.besides:
            return create

        def other(value: Any) -> Any:
            place = self.besides.get(value) if isinstance(value, _module("torch._guards").Source) else None
            return value if place is None else renamed[place]

        named = {name: other(value) for name, value in create.keywords.items()}
        return functools.partial(create.func, *map(other, create.args), **named)


class _Guarded:
    """What guards a call that was traced.

    Args:
        owners: the sources of what it was given, which are kept: their address names the call.
        guards: Dynamo's.
        ordered: sources of dictionaries whose keys have to keep their order.
    """

    def __init__(self, owners: Sequence[Any], guards: Iterable[Any], ordered: Iterable[Any]) -> None:
        self.owners = owners
        self._sources = _Sources()
        self._guards = [_Guard.of(guard, self._sources) for guard in guards]
        self._places = list(dict.fromkeys(each.place for each in self._guards))
        self._ordered = [self._sources.place(source) for source in ordered]
        self._values: dict[int, Any] | None = None

    def make_for(self, tx: Any, replaced: Mapping[Any, Any]) -> None:
        """Make the guards of a call in which other sources stand for those of this one.

        One on something that both calls have is there already.
        """
        renamed, output = self._sources.renamed(replaced), tx.output
        if self._values is None:  # the same for every call
            self._values = self._read(tx, [source for source, _ in self._sources.all])
        values = self._read(tx, renamed)
        changed = {place for place in self._places if renamed[place] is not self._sources.all[place][0]}
        builder = _module("torch._dynamo.variables.builder").VariableBuilder
        for each in self._guards:
            if each.place in changed and each.of_tensor:
                builder(tx, renamed[each.place])(values[each.place])
            elif each.place in changed:
                output.guards.add(each.made(renamed), collect_debug_stack=False)
        for place in self._places:
            value = values[place]
            if place in changed and value is self._values[place] and not isinstance(value, _NOT_OF_USER):
                output.guards.add(self._same_object(place, renamed[place]), collect_debug_stack=False)
        output.guard_on_key_order.update(renamed[place] for place in self._ordered)

    def _same_object(self, place: int, source: Any) -> Any:
        """Where both calls have one object of the user's, a plain trace guards that they do."""
        make = _module("torch._dynamo.guards").GuardBuilder.DUPLICATE_INPUT
        return source.make_guard(functools.partial(make, source_b=self._sources.all[place][0]))

    def _read(self, tx: Any, sources: Sequence[Any]) -> dict[int, Any]:
        """What is at the guarded ones of all sources, by their places."""
        scope, known = {"G": tx.output.root_tx.f_globals, "L": tx.output.root_tx.f_locals}, dict[Any, Any]()
        return {place: sources[place].get_value(scope, {}, known) for place in self._places}


_NOT_OF_USER = (bool, int, float, complex, str, bytes, type(None), type, FunctionType, torch.dtype, torch.device)
