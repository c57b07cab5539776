"""Help for Dynamo while it traces accelerated modules: what it would end a graph at, or compile again for.

Some methods of Dynamo's variables are asked here first: calls of a tensor's methods, whose numbers may be known
(``host_values``), calls of torch's functions, of which ``linspace`` takes its number of points as a constant, and calls
of Python functions: those of einops are one node each, where Dynamo would trace how einops reads its pattern, a
thousand instructions a call. So are its instructions that branch, and the function that says which whole numbers are
constants: those in a dictionary of a Python module are, to Dynamo, as if they were settings; models keep there what
changes with every chunk. Its instructions that load a global name and put something under a key are, and the end of a
graph, for the sake of ``memos``. All of them are Dynamo's own again once nobody asks, and unchanged for whatever is
traced elsewhere meanwhile.
"""

from __future__ import annotations

import dis
import operator
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.output_graph import OutputGraph
from torch._dynamo.source import DictGetItemSource, GlobalSource
from torch._dynamo.symbolic_convert import InstructionTranslatorBase
from torch._dynamo.variables import builder
from torch._dynamo.variables.base import VariableTracker
from torch._dynamo.variables.builtin import BuiltinVariable
from torch._dynamo.variables.functions import UserFunctionVariable
from torch._dynamo.variables.lists import BaseListVariable
from torch._dynamo.variables.tensor import SymNodeVariable, TensorVariable
from torch._dynamo.variables.torch import TorchInGraphFunctionVariable
from torch.fx.experimental.symbolic_shapes import statically_known_true

from lightint_compile.capture.host_values import (
    answered,
    are_numbers_read,
    numbers_read,
    truth_of,
    with_named_sizes,
    with_sizes,
)
from lightint_compile.capture.memos import Memos, left_out, memos_left_out
from lightint_compile.capture.number_operations import TAKE_SIZES
from lightint_compile.capture.symbolic_ranges import counted

_lock = threading.Lock()
_builder: Any = builder
"""The module of Dynamo that makes variables of what a function is given."""

_own: list[list[Any]] = []
"""Dynamo's own methods, functions and instructions, once for each who asked for help."""

_EINOPS = {"rearrange", "reduce", "repeat", "einsum"}
"""Functions of ``einops.einops`` that take tensors, a pattern and sizes, and give one tensor."""


_TAKE_SIZES = frozenset(
    {
        *(torch.zeros, torch.ones, torch.full, torch.empty, torch.arange, torch.linspace, torch.rand, torch.randn),
        *(torch.reshape, torch.narrow, torch.split, torch.chunk, torch.tile, torch.unflatten, torch.broadcast_to),
    }
)
"""Functions of torch whose arguments may be tensors of one number, which stand for it."""


@contextmanager
def helped(memos: Memos) -> Iterator[None]:
    """What this thread traces inside is helped, between :func:`allow_help` and its undoing.

    Args:
        memos: those of the module that is traced; what is found out about them is kept there.
    """
    with numbers_read(), left_out(memos):
        yield


def allow_help() -> Callable[[], None]:
    """Let Dynamo ask here first, and give what undoes that; it ends when the last one undoes it."""
    with _lock:
        places = _places()
        own = _own[0] if _own else [place.read() for place in places]
        _own.append(own)
        if len(_own) == 1:
            for place, method in zip(places, own, strict=True):
                place.write(place.wrap(method))

    def undo() -> None:
        with _lock:
            before = _own.pop()
            for place, method in zip(places, before, strict=True) if not _own else ():
                place.write(method)

    return undo


@dataclass(frozen=True)
class _Place:
    """Where Dynamo keeps something that is asked here first: an attribute, or an entry of a list.

    Attributes:
        wrap: makes what asks here first, from Dynamo's own.
    """

    holder: Any
    key: Any
    wrap: Callable[[Any], Any]

    def read(self) -> Any:
        return self.holder[self.key] if isinstance(self.holder, list) else getattr(self.holder, self.key)

    def write(self, value: Any) -> None:
        if isinstance(self.holder, list):
            self.holder[self.key] = value
        else:
            setattr(self.holder, self.key, value)


def _places() -> list[_Place]:
    return [
        _Place(TensorVariable, "call_method", _of_tensors),
        _Place(TorchInGraphFunctionVariable, "call_function", _of_functions),
        _Place(UserFunctionVariable, "call_function", _of_python),
        _Place(BuiltinVariable, "call_function", _of_builtins),
        _Place(_builder, "is_int_specialization_case", _of_numbers),
        _Place(OutputGraph, "compile_subgraph", _of_ends),
        *(
            _Place(each.dispatch_table, number, wrap)
            for each in _translators()
            for wrap, numbers in ((_of_branches, _BRANCHES), (_of_loads, _LOADS), (_of_stores, _STORES))
            for number in numbers
        ),
    ]


_BRANCHES = tuple(number for name, number in dis.opmap.items() if re.search(r"JUMP\w*_IF_(TRUE|FALSE)", name))
"""Instructions of this version of Python that branch on what lies on the stack."""

_LOADS = (dis.opmap["LOAD_GLOBAL"],)
"""What loads a global name, where a memo may be."""

_STORES = (dis.opmap["STORE_SUBSCR"],)
"""What puts something under a key."""


def _translators() -> Iterator[type[InstructionTranslatorBase]]:
    """Dynamo's translators, each of which has a table of what it does for an instruction."""
    waiting = [InstructionTranslatorBase]
    while waiting:
        kind = waiting.pop()
        yield kind
        waiting += kind.__subclasses__()


def _of_branches(own: Callable[..., Any]) -> Callable[..., Any]:
    def branch(self: InstructionTranslatorBase, instruction: Any) -> Any:
        value = self.stack[-1]
        told = truth_of(value, self) if are_numbers_read() else None
        if told is None:
            return own(self, instruction)
        self.stack[-1] = told
        result = own(self, instruction)
        if self.stack and self.stack[-1] is told:
            self.stack[-1] = value  # what ``a or b`` leaves is the tensor
        return result

    return branch


def _of_loads(own: Callable[..., Any]) -> Callable[..., Any]:
    def load(self: InstructionTranslatorBase, instruction: Any) -> Any:
        memos = memos_left_out()
        empty = memos.loaded(self, instruction.argval) if memos is not None else None
        if empty is None:
            return own(self, instruction)
        return self.push(empty)

    return load


def _of_stores(own: Callable[..., Any]) -> Callable[..., Any]:
    def store(self: InstructionTranslatorBase, instruction: Any) -> Any:
        memos, (value, target, _) = memos_left_out(), self.stack[-3:]
        if memos is not None:
            memos.stored(self, target, value)
        return own(self, instruction)

    return store


def _of_ends(own: Callable[..., Any]) -> Callable[..., Any]:
    def compile_subgraph(self: OutputGraph, *args: Any, **kwargs: Any) -> Any:
        memos = memos_left_out()
        if memos is not None:
            memos.check_unwritten(self)
        return own(self, *args, **kwargs)

    return compile_subgraph


def _of_tensors(own: Callable[..., Any]) -> Callable[..., Any]:
    def call_method(self: TensorVariable, tx: Any, name: str, args: Any, kwargs: Any) -> Any:
        if not are_numbers_read():
            return own(self, tx, name, args, kwargs)
        found = answered(self, tx, name, args) if not kwargs else None
        if found is not None:
            return found
        if name in TAKE_SIZES:
            args, kwargs = with_sizes(args, tx), with_named_sizes(kwargs, tx)
        return own(self, tx, name, args, kwargs)

    return call_method


def _of_functions(own: Callable[..., Any]) -> Callable[..., Any]:
    def call_function(self: TorchInGraphFunctionVariable, tx: Any, args: Any, kwargs: Any) -> Any:
        if self.value in _TAKE_SIZES and are_numbers_read():
            args, kwargs = with_sizes(args, tx), with_named_sizes(kwargs, tx)
        if _is_pattern(self.value) and are_numbers_read():
            kwargs = with_named_sizes(kwargs, tx)
        if self.value is torch.linspace and are_numbers_read() and _counts_up(args, kwargs):
            return VariableTracker.build(tx, _counted_up).call_function(tx, list(args), kwargs)
        return own(self, tx, args, kwargs)

    return call_function


def _of_python(own: Callable[..., Any]) -> Callable[..., Any]:
    def call_function(self: UserFunctionVariable, tx: Any, args: Any, kwargs: Any) -> Any:
        if _is_pattern(self.fn) and are_numbers_read():
            return TorchInGraphFunctionVariable(self.fn).call_function(tx, args, kwargs)
        return own(self, tx, args, kwargs)

    return call_function


def _is_pattern(function: Any) -> bool:
    """Whether it is one of einops, which torch 2.11 takes for one of torch's by itself."""
    return getattr(function, "__module__", None) == "einops.einops" and function.__name__ in _EINOPS


def _of_builtins(own: Callable[..., Any]) -> Callable[..., Any]:
    def call_function(self: BuiltinVariable, tx: Any, args: Any, kwargs: Any) -> Any:
        if self.fn in _READ_NUMBERS and are_numbers_read() and not kwargs:
            args = _with_numbers(self.fn, args, tx)
        found = counted(args) if self.fn is range and are_numbers_read() and not kwargs else None
        return own(self, tx, args, kwargs) if found is None else found

    return call_function


_READ_NUMBERS = frozenset({range, bool, operator.getitem})
"""What asks tensors for their numbers in a way of its own in one version of torch or another."""


def _with_numbers(function: Any, args: Any, tx: Any) -> list[VariableTracker]:
    if function is range:
        return with_sizes(args, tx)
    if function is bool:
        return [each if (told := truth_of(each, tx)) is None else told for each in args]
    *held, place = args
    is_number = type(place) is TensorVariable and isinstance(held[0].realize(), BaseListVariable)
    return [*held, *with_sizes([place], tx)] if is_number else list(args)


def _of_numbers(own: Callable[..., Any]) -> Callable[..., Any]:
    def is_int_specialization_case(value: Any, source: Any) -> Any:
        if are_numbers_read() and isinstance(source, DictGetItemSource) and isinstance(source.base, GlobalSource):
            return False  # a symbol once it has changed, like an argument, with Dynamo's own guards
        return own(value, source)

    return is_int_specialization_case


def _counts_up(args: Any, kwargs: Any) -> bool:
    """Whether ``linspace(start, end, steps)`` has a symbolic number of points at a distance of one."""
    if len(args) != 3 or not {"dtype", "device"}.issuperset(kwargs):
        return False
    start, end, steps = (_number(each) for each in args)
    if start is None or end is None or not isinstance(steps, torch.SymInt):
        return False
    return statically_known_true(end - start == steps - 1)


def _number(argument: VariableTracker) -> Any:
    argument = argument.realize()
    if isinstance(argument, SymNodeVariable):
        return argument.sym_num if isinstance(argument.sym_num, torch.SymInt) else None
    value = argument.as_python_constant() if argument.is_python_constant() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _counted_up(
    start: int, end: int, steps: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Tensor:
    """The same points as whole numbers, which floating point keeps exactly up to 2**24."""
    return torch.arange(start, start + steps, dtype=dtype or torch.get_default_dtype(), device=device)
