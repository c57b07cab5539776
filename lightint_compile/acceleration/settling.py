"""Modules that write down something of their first calls in dictionaries of theirs settle before they are traced.

``self.options["grid"] = [t, h, w]`` in a ``forward`` adds a key in the first call. Dynamo guards on the keys that it
saw, so what it compiled for the first call would never serve again; with fifty blocks that is a minute.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import nn

Methods = Mapping[str, FunctionType]


class Settling:
    """Which calls of a module are better made without a trace: the first of each kind, while a key is missing.

    A call of a kind that was seen is traced, whatever is missing: its code may be of a way that is not taken. So is a
    call whose arguments cannot get to where the key is written, as for a ``forward`` that hands all its keywords on.
    """

    def __init__(self, module: nn.Module) -> None:
        self._awaited = [
            (held, key, way if part is module else None)
            for part in module.modules()
            for name, key, way in _keys_written(type(part))
            if type(held := vars(part).get(name)) is dict
        ]
        self._forward = inspect.signature(module.forward).parameters if self._awaited else {}
        self._seen: set[Any] = set()

    def is_due(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether this call should run as it is."""
        self._awaited = [each for each in self._awaited if each[1] not in each[0]]
        if not any(way is None or args or self._leads_to(way, kwargs) for _, _, way in self._awaited):
            return False
        kind = (*map(_kind, args), *((name, _kind(value)) for name, value in kwargs.items()))
        fresh = kind not in self._seen
        self._seen.add(kind)
        return fresh

    def _leads_to(self, method: FunctionType, kwargs: Mapping[str, Any]) -> bool:
        """Whether a method takes the keywords that ``forward`` hands on."""
        handed = {name: value for name, value in kwargs.items() if name not in self._forward}
        try:
            inspect.signature(method).bind(None, **handed)
        except TypeError:
            return False
        return True


def _kind(value: Any) -> Any:
    """What decides which way a call goes, as far as it shows."""
    if isinstance(value, torch.Tensor):
        return value.dim()
    return value if value is None or isinstance(value, (bool, str)) else type(value)


def _keys_written(kind: type[nn.Module]) -> Iterator[tuple[str, str, FunctionType | None]]:
    """``(name, key, way)`` of each ``self.name["key"] = ...`` in ``forward``, and in methods that it leads to.

    The way is the method that all keywords of ``forward`` are handed to; ``None`` where they are not.
    """
    methods = {
        name: value
        for each in reversed(kind.__mro__)
        if each.__module__.split(".")[0] != "torch"
        for name, value in vars(each).items()
        if isinstance(value, FunctionType)
    }
    forward = methods.get("forward")
    if forward is None:
        return
    yield from ((*found, None) for found in _in_code(forward))
    parameters = inspect.signature(forward).parameters.values()
    hands_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    for name in _named(forward, methods):
        for method in _reached(name, methods):
            yield from ((*found, methods[name] if hands_on else None) for found in _in_code(method))


def _named(method: FunctionType, methods: Methods) -> list[str]:
    return [name for name in _code(method).co_names if name in methods and name != "forward"]


def _reached(start: str, methods: Methods) -> Iterator[FunctionType]:
    """The method called ``start``, and those that it leads to."""
    waiting, known = [start], {start}
    while waiting:
        method = methods[waiting.pop()]
        yield method
        waiting += (fresh := set(_named(method, methods)) - known)
        known |= fresh


def _code(method: FunctionType) -> Any:
    return inspect.unwrap(method).__code__


def _in_code(method: FunctionType) -> Iterator[tuple[str, str]]:
    instructions = list(dis.get_instructions(_code(method)))
    for held, key, store in zip(instructions, instructions[1:], instructions[2:], strict=False):
        written = (held.opname, key.opname, store.opname) == ("LOAD_ATTR", "LOAD_CONST", "STORE_SUBSCR")
        if written and isinstance(key.argval, str):
            yield str(held.argval), key.argval
