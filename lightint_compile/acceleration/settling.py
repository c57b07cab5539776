"""Modules that write down something of their first calls in dictionaries of theirs settle before they are traced.

``self.options["grid"] = [t, h, w]`` in a ``forward`` adds a key in the first call. Dynamo guards on the keys that it
saw, so what it compiled for the first call would never serve again; with fifty blocks that is a minute.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import nn


class Settling:
    """Which calls of a module are better made without a trace: the first of each kind, while a key is missing.

    A call of a kind that was seen is traced, whatever is missing: its code may be of a way that is not taken.
    """

    def __init__(self, module: nn.Module) -> None:
        self._awaited = [
            (held, key)
            for part in module.modules()
            for name, key in _keys_written(type(part))
            if type(held := vars(part).get(name)) is dict
        ]
        self._seen: set[Any] = set()

    def is_due(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether this call should run as it is."""
        self._awaited = [(held, key) for held, key in self._awaited if key not in held]
        if not self._awaited:
            return False
        kind = (*map(_kind, args), *((name, _kind(value)) for name, value in kwargs.items()))
        fresh = kind not in self._seen
        self._seen.add(kind)
        return fresh


def _kind(value: Any) -> Any:
    """What decides which way a call goes, as far as it shows."""
    if isinstance(value, torch.Tensor):
        return value.dim()
    return value if value is None or isinstance(value, (bool, str)) else type(value)


def _keys_written(kind: type[nn.Module]) -> Iterator[tuple[str, str]]:
    """``(name, key)`` of each ``self.name["key"] = ...`` in ``forward``, and in methods of the class that it names."""
    methods = {
        name: value
        for each in reversed(kind.__mro__)
        if each.__module__.split(".")[0] != "torch"
        for name, value in vars(each).items()
        if isinstance(value, FunctionType)
    }
    waiting, reached = ["forward"], {"forward"}
    while waiting:
        method = methods.get(waiting.pop())
        if method is None:
            continue
        yield from _in_code(method)
        called = {name for name in method.__code__.co_names if name in methods} - reached
        reached |= called
        waiting += called


def _in_code(method: FunctionType) -> Iterator[tuple[str, str]]:
    instructions = list(dis.get_instructions(method))
    for held, key, store in zip(instructions, instructions[1:], instructions[2:], strict=False):
        written = (held.opname, key.opname, store.opname) == ("LOAD_ATTR", "LOAD_CONST", "STORE_SUBSCR")
        if written and isinstance(key.argval, str):
            yield str(held.argval), key.argval
