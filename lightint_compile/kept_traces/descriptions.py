"""What a value is, as text that two processes agree on: functions and classes by their content, constants by value.

A trace is made of what Dynamo found at its sources. Another process may use it where the same is found there, and
"the same" is an equal description. What has none (an object that is guarded by its identity) keeps a trace from being
kept.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from lightint_compile.trace_parts import UnkeepableError

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), torch.dtype, torch.device)
_PLAIN_TOO = (torch.layout, torch.memory_format, range, slice)
_MARKS = (
    "_dynamo_dynamic_indices",
    "_dynamo_weak_dynamic_indices",
    "_dynamo_unbacked_indices",
    "_dynamo_strict_unbacked_indices",
    "_dynamo_static_indices",
)
_ASIDE = {"__doc__", "__dict__", "__weakref__", "__annotations__", "_abc_impl", "__static_attributes__"}
_UNGUARDED = "_dynamo_marked_constant"
"""What Dynamo finds on a function whose result it takes for a constant without a guard."""


class Describer:
    """Descriptions; those of functions and classes are made once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, str]] = {}
        self._under_way: set[int] = set()

    def type_of(self, value: Any) -> str:
        """The type of a value, with what its class defines."""
        return self.identity(type(value))

    def constant(self, value: Any) -> str:
        """A constant by value.

        Raises:
            UnkeepableError: it is none.
        """
        if isinstance(value, enum.Enum):
            return f"{self.type_of(value)}.{value.name}"
        if type(value) in (*_PLAIN, *_PLAIN_TOO):
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, types.CodeType):
            return code_text(value)
        if isinstance(value, (tuple, list)):
            return f"{self.type_of(value)}({', '.join(map(self.constant, value))})"
        if isinstance(value, (set, frozenset)):
            return f"{self.type_of(value)}({', '.join(sorted(map(self.constant, value)))})"
        return self.identity(value)

    def identity(self, value: Any) -> str:
        """What stands for itself: a function, a class, a module or a constant that there is once.

        Raises:
            UnkeepableError: another process may have any number of them.
        """
        if isinstance(value, (bool, type(None), type(Ellipsis), enum.Enum, torch.dtype)):
            return repr(value)
        if isinstance(value, types.ModuleType):
            return f"module {value.__name__}"
        describe = self._described_by(value)
        if describe is None:
            raise UnkeepableError(f"Dynamo guards an object of {type(value).__qualname__} by its identity")
        return self._once(value, describe)

    def about(self, value: Any) -> str:
        """What can be said of any value: constants and what stands for itself, else its type by name."""
        try:
            return self.identity(value) if not _is_plain(value) else self.constant(value)
        except UnkeepableError:
            return _name_of(type(value))

    def tensor(self, value: Any) -> str:
        """What Dynamo's check of a tensor takes from the tensor itself; sizes and strides are kept beside it."""
        keys = torch._C._dispatch_keys(value)
        marks = [(name, sorted(getattr(value, name))) for name in _MARKS if hasattr(value, name)]
        parts = (value.dtype, value.device, value.requires_grad, value.dim(), keys.raw_repr(), marks)
        return f"{self.type_of(value)} {parts!r}"

    def _described_by(self, value: Any) -> Callable[[Any], str] | None:
        if isinstance(value, type):
            return self._class
        if isinstance(value, types.FunctionType):
            return self._function
        if isinstance(value, types.MethodType):
            return lambda method: f"method {self.about(method.__func__)} of {self.type_of(method.__self__)}"
        if isinstance(value, functools.partial):
            return lambda each: self._listed((each.func, *each.args)) + self._named(each.keywords)
        named = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
        if isinstance(value, (*named, types.MethodWrapperType, types.ClassMethodDescriptorType)):
            return _name_of
        if isinstance(value, (torch._ops.OpOverload, torch._ops.OpOverloadPacket, torch._ops.HigherOrderOperator)):
            return str
        return None

    def _once(self, value: Any, describe: Callable[[Any], str]) -> str:
        known = self._known.get(id(value))
        if known is not None:
            return known[1]
        if id(value) in self._under_way:
            return f"again {_name_of(value)}"
        self._under_way.add(id(value))
        try:
            text = f"{_name_of(value)} {digest(describe(value))}"
        finally:
            self._under_way.discard(id(value))
        self._known[id(value)] = value, text
        return text

    def _class(self, value: type) -> str:
        return "\n".join(line for base in value.__mro__ for line in self._class_lines(base))

    def _class_lines(self, base: type) -> Iterator[str]:
        yield _name_of(base)
        if base.__flags__ & _MADE_BY_PYTHON:
            for name, value in sorted(vars(base).items()):
                if name not in _ASIDE:
                    yield f"{name} {self._member(value)}"

    def _member(self, value: Any) -> str:
        if isinstance(value, (staticmethod, classmethod)):
            return f"{type(value).__name__} {self.about(value.__func__)}"
        if isinstance(value, property):
            return f"property {self.about(value.fget)}"
        return self.about(value)

    def _function(self, value: types.FunctionType) -> str:
        if getattr(value, _UNGUARDED, False):
            raise UnkeepableError(f"the result of {value.__qualname__} is taken for a constant")
        cells = [_content(cell) for cell in value.__closure__ or ()]
        parts = (self._listed(value.__defaults__ or ()), self._named(value.__kwdefaults__ or {}), self._listed(cells))
        return "\n".join((code_text(value.__code__), *parts, repr(sorted(vars(value)))))

    def _listed(self, values: Any) -> str:
        return ", ".join(map(self.about, values))

    def _named(self, values: Mapping[str, Any]) -> str:
        return ", ".join(f"{name}={self.about(value)}" for name, value in sorted(values.items()))


_MADE_BY_PYTHON = 1 << 9
"""The flag of types that lie on the heap: those that a class statement made."""


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, frozenset)):
        return all(map(_is_plain, value))
    return type(value) in (*_PLAIN, *_PLAIN_TOO) or isinstance(value, enum.Enum)


def _name_of(value: Any) -> str:
    module = getattr(value, "__module__", None)
    if module is None:  # of a method of a type that is written in C
        module = getattr(getattr(value, "__objclass__", None), "__qualname__", "")
    return f"{module}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def code_text(code: types.CodeType) -> str:
    """What a function's code is, wherever it lies in memory."""
    inner = [code_text(each) if isinstance(each, types.CodeType) else _stable(each) for each in code.co_consts]
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    place = (code.co_filename, code.co_qualname, code.co_firstlineno, code.co_flags)
    return digest(repr((place, names, code.co_code, code.co_exceptiontable, inner)))


def _stable(constant: Any) -> str:
    return repr(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant)


def digest(text: str) -> str:
    """A hash of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
