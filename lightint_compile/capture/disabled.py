"""Functions behind ``torch.compiler.disable`` that a call of a module may reach: Dynamo ends a graph at each of them.

They are found without a call, by what code names: the methods of the module's classes, the functions that those name in
their globals and closures, and so on. Only code that the model is made of is looked into: the packages of its classes,
and whatever is not installed. The libraries that it uses keep to themselves, torch first of all.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
import sysconfig
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch

from lightint_compile.torch_marks import disabled_original, is_disabled

_PATHS = sysconfig.get_paths()
_INSTALLED = tuple(_PATHS[name] + os.sep for name in ("purelib", "platlib"))
_STDLIB = _PATHS["stdlib"] + os.sep
_TORCH = os.path.dirname(torch.__file__) + os.sep
_OURS = __name__.partition(".")[0]
_CALLS = torch.nn.Module.__module__
"""Where torch calls modules: a disabled class or module wraps functions of this one."""

_CALLED = frozenset({"forward", "__call__", "_call_impl", "_forward_hooks", "_forward_pre_hooks"})
"""What runs whenever a module or an object is called."""

_ATTENTION = re.compile(r"attention|attn|softmax", re.IGNORECASE)

_MOST_HELD = 1024
"""Containers of more values than this hold data."""


@dataclass(frozen=True)
class Disabled:
    """One function that Dynamo does not trace.

    Attributes:
        function: what ``torch.compiler.disable`` made, or a wrapper that ``functools.wraps`` made look like it.
        original: what it calls.
        is_own: whether it is the model's own code, and no library's that the model uses.
    """

    function: FunctionType
    original: Any
    is_own: bool

    @property
    def is_open(self) -> bool:
        """Whether Dynamo traces it now, because :func:`~lightint_compile.torch_marks.take_disable_off` was called."""
        return not is_disabled(self.function)

    @property
    def name(self) -> str:
        """The function's name with its class."""
        return str(getattr(self.original, "__qualname__", type(self.original).__name__))

    @property
    def source(self) -> str:
        """The user's ``file:line``; empty for a function without code."""
        code = _code_of(self.original)
        return f"{code.co_filename}:{code.co_firstlineno}" if code else ""

    @property
    def attends(self) -> bool:
        """Whether it, or what it calls, names attention as torch and its kernels do: what most passes are there for."""
        return any(_ATTENTION.search(name) for name in _Walk([self.original], {_package(_home(self.original))}).names)

    def contains(self, file: str, line: int) -> bool:
        """Whether a line is inside of the original; of one that is torch's own none is, it serves everything."""
        code = _code_of(self.original)
        return code is not None and code.co_filename == file and line in _lines(code)


def _code_of(function: Any) -> CodeType | None:
    unwrapped = inspect.unwrap(function) if callable(function) else function
    code = getattr(unwrapped, "__code__", None)
    return code if code is not None and not code.co_filename.startswith(_TORCH) else None


def _lines(code: CodeType) -> range:
    """From the decorators to the last line, functions inside included."""
    inner = [max(_lines(const)) for const in code.co_consts if isinstance(const, CodeType)]
    own = [line for *_, line in code.co_lines() if line is not None]
    return range(code.co_firstlineno, max([code.co_firstlineno, *own, *inner]) + 1)


def disabled_in(module: torch.nn.Module) -> list[Disabled]:
    """The disabled functions that a call of ``module`` may reach, in the order in which they are found."""
    packages = {_package(type(part).__module__) for part in module.modules()} - {"torch"}
    return list(_Walk(module.modules(), packages).found.values())


class _Walk:
    """What code reaches, found by names: a method is reached once a function that is reached names it."""

    def __init__(self, seeds: Iterable[Any], packages: Iterable[str]) -> None:
        self.found: dict[int, Disabled] = {}
        self.names: set[str] = set(_CALLED)
        self._packages = frozenset(packages)
        self._seen: dict[int, Any] = {}
        self._owners: list[Any] = []
        self._follow(deque(seeds))

    def _follow(self, waiting: deque[Any]) -> None:
        known = 0
        while waiting or known != len(self.names):
            known = len(self.names)
            waiting.extend(value for owner in self._owners for value in self._named_in(vars(owner)))
            while waiting:
                waiting.extend(self._reached_by(waiting.popleft()))

    def _named_in(self, attributes: Mapping[str, Any]) -> Iterator[Any]:
        for name, value in list(attributes.items()):
            if name in self.names:
                yield value.fget if isinstance(value, property) else value

    def _reached_by(self, value: Any) -> Iterable[Any]:
        if id(value) in self._seen or isinstance(value, torch.Tensor):
            return ()
        self._seen[id(value)] = value
        if isinstance(value, FunctionType):
            return self._by_function(value)
        if isinstance(value, MethodType):
            return (value.__func__, value.__self__)
        if isinstance(value, (staticmethod, classmethod)):
            return (value.__func__,)
        if isinstance(value, functools.partial):
            return (value.func, *value.args, *value.keywords.values())
        if isinstance(value, (list, tuple, set, frozenset, dict)):
            held = value.values() if isinstance(value, dict) else value
            return held if len(value) <= _MOST_HELD else ()
        return self._by_owner(value)

    def _by_owner(self, value: Any) -> Iterable[Any]:
        """What a class, an object or a module of Python has under names that are reached."""
        home = (
            value.__name__
            if isinstance(value, ModuleType)
            else _home(value if isinstance(value, type) else type(value))
        )
        if not hasattr(value, "__dict__") or not (self._is_own(home) or isinstance(value, torch.nn.Module)):
            return ()
        self._owners.append(value)
        classes = (
            value.__mro__[1:] if isinstance(value, type) else () if isinstance(value, ModuleType) else (type(value),)
        )
        return (*classes, *self._named_in(vars(value)))

    def _by_function(self, function: FunctionType) -> Iterator[Any]:
        original = disabled_original(function)
        if original is not None:
            is_own = _home(original) == _CALLS or self._is_own(_home(original))
            if is_own or _package(_home(original)) != "torch":
                self.found[id(function)] = Disabled(function, original, is_own)
            yield original
        if function.__code__.co_filename.startswith(_TORCH) or not self._is_own(_home(function)):
            return
        names = dict.fromkeys(_names_in(function.__code__))
        self.names |= names.keys()
        yield getattr(function, "__wrapped__", None)
        yield from (function.__defaults__ or (), (function.__kwdefaults__ or {}).values())
        yield from (cell.cell_contents for cell in function.__closure__ or () if not _is_empty(cell))
        yield from (function.__globals__[name] for name in names if name in function.__globals__)
        yield from _imported_by(function, names)

    def _is_own(self, home: str) -> bool:
        """Whether a module of Python is code that the model is made of."""
        package = _package(home)
        if package in ("torch", _OURS) or package in sys.stdlib_module_names:
            return False
        file = getattr(sys.modules.get(home), "__file__", None) or ""
        return package in self._packages or not file.startswith((*_INSTALLED, _STDLIB))


def _package(home: str) -> str:
    return home.partition(".")[0]


def _home(value: Any) -> str:
    return str(getattr(value, "__module__", None) or "")


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _names_in(const)


def _imported_by(function: FunctionType, names: Iterable[str]) -> Iterator[ModuleType]:
    """Modules that a function may import when it runs: by a name of its own package, or of one around it."""
    package = str(function.__globals__.get("__package__") or "")
    around = [package.rsplit(".", count)[0] for count in range(package.count(".") + 1)] if package else []
    for name in names:
        for full in (name, *(f"{each}.{name}" for each in around)):
            if full in sys.modules:
                yield sys.modules[full]


def _is_empty(cell: CellType) -> bool:
    try:
        return cell.cell_contents is cell
    except ValueError:
        return True
