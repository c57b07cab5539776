"""Help for Dynamo while it traces accelerated modules: what it would end a graph at, or compile again for.

Three methods of Dynamo's variables are asked here first: calls of a tensor's methods, whose numbers may be known
(``host_values``), calls of torch's functions, of which ``linspace`` takes its number of points as a constant, and calls
of Python functions: those of einops are one node each, where Dynamo would trace how einops reads its pattern, a
thousand instructions a call. So is the function that says which whole numbers are constants: those in a dictionary of
a Python module are, to Dynamo, as if they were settings; models keep there what changes with every chunk. All of them
are Dynamo's own again once nobody asks, and unchanged for whatever is traced elsewhere meanwhile.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.source import DictGetItemSource, GlobalSource
from torch._dynamo.variables import builder
from torch._dynamo.variables.base import VariableTracker
from torch._dynamo.variables.functions import UserFunctionVariable
from torch._dynamo.variables.tensor import SymNodeVariable, TensorVariable
from torch._dynamo.variables.torch import TorchInGraphFunctionVariable
from torch.fx.experimental.symbolic_shapes import statically_known_true

from lightint_compile.capture.host_values import answered, with_sizes

log = logging.getLogger(__name__)

_helping: ContextVar[bool] = ContextVar("lightint_tracing_help", default=False)
_lock = threading.Lock()
_builder: Any = builder
"""The module of Dynamo that makes variables of what a function is given."""

_own: list[tuple[Any, ...]] = []
"""Dynamo's own methods and function, once for each who asked for help."""

_EINOPS = {"rearrange", "reduce", "repeat", "einsum"}
"""Functions of ``einops.einops`` that take tensors, a pattern and sizes, and give one tensor."""


@contextmanager
def helped() -> Iterator[None]:
    """What this thread traces inside is helped, between :func:`allow_help` and its undoing."""
    token = _helping.set(True)
    try:
        yield
    finally:
        _helping.reset(token)


def allow_help() -> Callable[[], None]:
    """Let Dynamo ask here first, and give what undoes that; it ends when the last one undoes it."""
    with _lock:
        own = _own[0] if _own else _as_it_is()
        _own.append(own)
        if len(_own) == 1:
            _put(_of_tensors(own[0]), _of_functions(own[1]), _of_python(own[2]), _of_numbers(own[3]))

    def undo() -> None:
        with _lock:
            before = _own.pop()
            if not _own:
                _put(*before)

    return undo


def _as_it_is() -> tuple[Any, ...]:
    methods = TensorVariable.call_method, TorchInGraphFunctionVariable.call_function, UserFunctionVariable.call_function
    return (*methods, _builder.is_int_specialization_case)


def _put(call_method: Any, call_function: Any, call_python: Any, is_constant: Any) -> None:
    TensorVariable.call_method = call_method  # type: ignore[method-assign]
    TorchInGraphFunctionVariable.call_function = call_function  # type: ignore[method-assign]
    UserFunctionVariable.call_function = call_python  # type: ignore[method-assign]
    _builder.is_int_specialization_case = is_constant


def _of_tensors(own: Callable[..., Any]) -> Callable[..., Any]:
    def call_method(self: TensorVariable, tx: Any, name: str, args: Any, kwargs: Any) -> Any:
        if not _helping.get():
            return own(self, tx, name, args, kwargs)
        found = answered(self, tx, name, args) if not kwargs else None
        return own(self, tx, name, with_sizes(name, args, tx), kwargs) if found is None else found

    return call_method


def _of_functions(own: Callable[..., Any]) -> Callable[..., Any]:
    def call_function(self: TorchInGraphFunctionVariable, tx: Any, args: Any, kwargs: Any) -> Any:
        if self.value is torch.linspace and _helping.get() and _counts_up(args, kwargs):
            return VariableTracker.build(tx, _counted_up).call_function(tx, list(args), kwargs)
        return own(self, tx, args, kwargs)

    return call_function


def _of_python(own: Callable[..., Any]) -> Callable[..., Any]:
    def call_function(self: UserFunctionVariable, tx: Any, args: Any, kwargs: Any) -> Any:
        function: Any = self.fn
        if function.__module__ == "einops.einops" and function.__name__ in _EINOPS and _helping.get():
            return TorchInGraphFunctionVariable(function).call_function(tx, args, kwargs)
        return own(self, tx, args, kwargs)

    return call_function


def _of_numbers(own: Callable[..., Any]) -> Callable[..., Any]:
    def is_int_specialization_case(value: Any, source: Any) -> Any:
        if _helping.get() and isinstance(source, DictGetItemSource) and isinstance(source.base, GlobalSource):
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
