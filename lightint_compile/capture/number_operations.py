"""What operations of torch compute of few whole numbers, each a Python number or one of Dynamo's symbols.

Numbers lie in NumPy arrays of objects, which index, reshape and broadcast as tensors do, and whose views share memory.
A symbol is computed with as Dynamo does it for sizes, so its guards are those that code with sizes has.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.fx as fx
from torch._dynamo.variables.base import VariableTracker
from torch._dynamo.variables.tensor import SymNodeVariable
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

Number: TypeAlias = int | SymNodeVariable
"""Truth values are numbers too."""

Numbers: TypeAlias = "np.ndarray[Any, np.dtype[np.object_]]"


class UnknownError(Exception):
    """A value that cannot be told."""


class Arithmetic:
    """Computes with single numbers.

    Args:
        tx: Dynamo's translator, in whose graph symbols are computed.
    """

    def __init__(self, tx: Any) -> None:
        self._tx = tx

    def __call__(self, operation: Callable[..., Any], *operands: Number) -> Number:
        """What ``operation`` makes of numbers; a node of the graph where one of them is a symbol."""
        divides = operation in (operator.floordiv, operator.mod)
        if divides and isinstance(operands[1], int) and not operands[1]:
            raise UnknownError
        if all(isinstance(each, int) for each in operands):
            return int_or_bool(operation(*operands))
        given = [VariableTracker.build(self._tx, each) for each in operands]
        return number_in(VariableTracker.build(self._tx, operation).call_function(self._tx, given, {}))

    def over(self, operation: Callable[..., Any], *operands: Any) -> Numbers:
        """``operation`` on each element of arrays that broadcast."""
        each = np.frompyfunc(functools.partial(self, operation), len(operands), 1)
        return numbers(each(*map(numbers, operands)))

    def along(self, operation: Callable[..., Any], array: Numbers, dim: int | None, keepdim: bool) -> Numbers:
        """Elements joined by ``operation``: all of them, or those along one axis."""
        if not array.size or isinstance(dim, np.ndarray):
            raise UnknownError
        each = np.frompyfunc(functools.partial(self, operation), 2, 1)
        if dim is not None:
            return numbers(each.reduce(array, axis=dim, keepdims=keepdim))
        every: list[Number] = array.reshape(-1).tolist()
        return numbers(functools.reduce(functools.partial(self, operation), every))


def number_in(variable: VariableTracker) -> Number:
    """The number that is one of Dynamo's variables.

    Raises:
        UnknownError: it is none, or a floating one, or one that only the data tell.
    """
    if isinstance(variable, SymNodeVariable):
        symbol = variable.sym_num
        if not isinstance(symbol, (torch.SymInt, torch.SymBool)) or free_unbacked_symbols(symbol):
            raise UnknownError
        return variable
    return int_or_bool(variable.as_python_constant() if variable.is_python_constant() else None)


def int_or_bool(value: object) -> int:
    """The value, if it is a whole number.

    Raises:
        UnknownError: it is none.
    """
    if not isinstance(value, int):
        raise UnknownError
    return value


def numbers(data: Any) -> Numbers:
    """Nested sequences of numbers as an array.

    Raises:
        UnknownError: something else is among them.
    """
    if isinstance(data, np.ndarray):
        return data
    if isinstance(data, (list, tuple)):
        return np.stack([numbers(each) for each in data]) if data else np.empty(0, object)
    array = np.empty((), object)
    array[()] = data if isinstance(data, SymNodeVariable) else int_or_bool(data)
    return array


def fitted(values: Numbers, dtype: torch.dtype) -> Numbers:
    """The numbers as a tensor of ``dtype`` holds them, its own object each.

    Raises:
        UnknownError: it does not hold one of them; whole numbers that are too large would wrap.
    """
    return numbers(np.frompyfunc(functools.partial(_fitted, dtype), 1, 1)(values))


def _fitted(dtype: torch.dtype, number: Number) -> Number:
    if dtype is torch.bool:
        if not _is_truth(number):
            raise UnknownError
        return number
    bounds = torch.iinfo(dtype)
    if isinstance(number, SymNodeVariable):
        if not _is_truth(number):
            # a condition on the range alone, and none where the range of the symbol tells: it stays a symbol
            if dtype is torch.int64 or bounds.min <= number.sym_num <= bounds.max:
                return number
            raise UnknownError
        number = int(number.evaluate_expr())  # with a guard: a tensor of whole numbers holds no truth value
    if not bounds.min <= number <= bounds.max:
        raise UnknownError
    return int(number)


def _is_truth(number: Number) -> bool:
    symbol = number.sym_num if isinstance(number, SymNodeVariable) else number
    return isinstance(symbol, (bool, torch.SymBool))


def index_of(given: Any) -> tuple[Any, ...]:
    """An index of whole numbers and slices for an array, whose result is a view whatever it is.

    Raises:
        UnknownError: a symbol, a mask or a list of places.
    """
    entries = given if isinstance(given, tuple) else (given,)
    found = tuple(_place(each) for each in entries)
    return found if Ellipsis in found else (*found, Ellipsis)


def _place(entry: Any) -> Any:
    if isinstance(entry, np.ndarray) and not entry.shape:
        entry = entry.item()
    if isinstance(entry, slice):
        return slice(*(None if each is None else _place(each) for each in (entry.start, entry.stop, entry.step)))
    if entry is None or entry is Ellipsis or (isinstance(entry, int) and not isinstance(entry, bool)):
        return entry
    raise UnknownError


def _shape(given: tuple[Any, ...]) -> tuple[int, ...]:
    found = given[0] if len(given) == 1 and isinstance(given[0], (list, tuple)) else given
    extents = tuple(each.item() if isinstance(each, np.ndarray) else each for each in found)
    if not all(isinstance(each, int) for each in extents):
        raise UnknownError
    return extents


Computation: TypeAlias = Callable[..., Numbers]
"""Takes an :class:`Arithmetic` and the arguments of the call, tensors as arrays of numbers."""


def _elementwise(operation: Callable[..., Any], count: int = 2) -> Computation:
    def compute(each: Arithmetic, *operands: Any) -> Numbers:
        if len(operands) != count:
            raise UnknownError
        return each.over(operation, *operands)

    return compute


def _reduced(operation: Callable[..., Any]) -> Computation:
    def compute(each: Arithmetic, array: Any, dim: int | None = None, keepdim: bool = False) -> Numbers:
        return each.along(operation, numbers(array), dim, keepdim)

    return compute


def _product(each: Arithmetic, parts: Any) -> Numbers:
    """``math.prod``, which goes along the first axis of a tensor."""
    return each.along(operator.mul, numbers(parts), 0, False)


def _extreme(operation: Callable[..., Any]) -> Computation:
    """``max`` and ``min``: of all elements, or of two tensors. Along an axis they give places too."""

    def compute(each: Arithmetic, array: Any, other: Any = None) -> Numbers:
        if other is None:
            return each.along(operation, numbers(array), None, False)
        if not isinstance(other, np.ndarray):
            raise UnknownError
        return each.over(operation, array, other)

    return compute


def _truths(is_all: bool) -> Computation:
    def compute(each: Arithmetic, array: Any) -> Numbers:
        every: list[Number] = numbers(array).reshape(-1).tolist()
        found: Number = is_all
        for number in every:
            found = _joined_truths(each, is_all, found, _truth(each, number))
        return numbers(found)

    return compute


def _joined_truths(each: Arithmetic, is_all: bool, one: Number, other: Number) -> Number:
    """``one and other`` or ``one or other``; a symbol is joined with symbols only."""
    for known, rest in ((one, other), (other, one)):
        if isinstance(known, bool):
            return rest if known is is_all else known
    return each(operator.and_ if is_all else operator.or_, one, other)


def _truth(each: Arithmetic, number: Number) -> Number:
    return number if _is_truth(number) else each(operator.ne, number, 0)


def _joined(join: Callable[..., Numbers]) -> Computation:
    def compute(each: Arithmetic, parts: Iterable[Any], dim: int = 0) -> Numbers:
        return join([numbers(part) for part in parts], axis=dim)

    return compute


def _made(each: Arithmetic, data: Any) -> Numbers:
    return numbers(data)


def _same(each: Arithmetic, array: Any, *_: Any) -> Numbers:
    return numbers(array)


def _part(each: Arithmetic, array: Any, index: Any) -> Numbers:
    return numbers(array)[index_of(index)]


def _reshaped(each: Arithmetic, array: Any, *shape: Any) -> Numbers:
    return numbers(array).reshape(_shape(shape))


def _flattened(each: Arithmetic, array: Any) -> Numbers:
    return numbers(array).reshape(-1)


def _with_axis(each: Arithmetic, array: Any, dim: int) -> Numbers:
    return np.expand_dims(numbers(array), dim)


def _without_axis(each: Arithmetic, array: Any, dim: int | None = None) -> Numbers:
    array = numbers(array)
    return array[...] if dim is not None and array.shape[dim] != 1 else np.squeeze(array, dim)[...]


def _copied(each: Arithmetic, array: Any) -> Numbers:
    return numbers(array).copy()


def _repeated(each: Arithmetic, array: Any, *times: Any) -> Numbers:
    return np.tile(numbers(array), _shape(times))


def _expanded(each: Arithmetic, array: Any, *shape: Any) -> Numbers:
    array, extents = numbers(array), list(_shape(shape))
    for place in range(-1, -array.ndim - 1, -1):
        extents[place] = array.shape[place] if extents[place] == -1 else extents[place]
    return np.broadcast_to(array, extents)


_MADE = (torch.tensor, torch.as_tensor, torch._refs.tensor)
"""What makes tensors of numbers; the last is what ``torch.tensor`` becomes where sizes are symbols."""

_BINARY = {
    operation.__name__: _elementwise(operation)
    for operation in (
        *(operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod),
        *(operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge),
    )
}
_BY_NAME: dict[str, Computation] = {
    **_BINARY,
    **{f"__{name}__": computation for name, computation in _BINARY.items()},  # so torch 2.11 writes ``==``
    **{"neg": _elementwise(operator.neg, 1), "maximum": _elementwise(max), "minimum": _elementwise(min)},
    **{"sum": _reduced(operator.add), "prod": _reduced(operator.mul), "max": _extreme(max), "min": _extreme(min)},
    **{"all": _truths(True), "any": _truths(False)},
    **{"to": _same, "long": _same, "int": _same, "cpu": _same, "contiguous": _same, "detach": _same},
    **{"view": _reshaped, "reshape": _reshaped, "flatten": _flattened, "expand": _expanded, "repeat": _repeated},
    **{"unsqueeze": _with_axis, "squeeze": _without_axis, "clone": _copied},
}
"""By the names that methods of tensors have, and functions of torch that do the same."""

_FUNCTIONS: dict[Any, Computation] = {
    **dict.fromkeys(_MADE, _made),
    **{torch.stack: _joined(np.stack), torch.cat: _joined(np.concatenate), torch.concat: _joined(np.concatenate)},
    **{getattr(operator, name): computation for name, computation in _BINARY.items()},
    **{operator.neg: _BY_NAME["neg"], operator.getitem: _part, math.prod: _product},
    **{getattr(torch, name): compute for name, compute in _BY_NAME.items() if hasattr(torch, name)},
}


_AUGMENTED = {
    getattr(operator, f"i{name}"): getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "mod")
}

_FORMS = frozenset({"dtype", "device", "non_blocking", "copy", "memory_format", "pin_memory", "layout"})
"""Keywords that say where and as what a result lies, which is read from the result itself."""

TAKE_SIZES = frozenset(
    {
        *("view", "reshape", "expand", "repeat", "new_zeros", "new_ones", "new_empty", "new_full", "narrow", "tile"),
        *("unflatten", "split", "chunk", "select"),
    }
)
"""Methods whose arguments may be tensors of one number, which stand for it. None of them writes."""

_READ_ONLY = frozenset({*TAKE_SIZES, "float", "double", "cumsum", "size", "stride", "dim", "numel"})


def makes_numbers(node: fx.Node) -> bool:
    """Whether a node makes a tensor of numbers that are no tensors yet."""
    return node.op == "call_function" and node.target in _MADE


def computation(node: fx.Node) -> Computation | None:
    """What a node computes of numbers; ``None`` for one that is not known to compute only."""
    if "out" in node.kwargs:
        return None
    return _BY_NAME.get(str(node.target)) if node.op == "call_method" else _FUNCTIONS.get(node.target)


def keywords(node: fx.Node) -> dict[str, Any]:
    """The keyword arguments of a node that its numbers depend on."""
    return {name: value for name, value in node.kwargs.items() if name not in _FORMS}


def augmented(node: fx.Node) -> Callable[..., Any] | None:
    """What an augmented assignment (``x += 1``) to a tensor joins with; ``None`` for any other node."""
    return _AUGMENTED.get(node.target) if node.op == "call_function" else None


def only_reads(node: fx.Node) -> bool:
    """Whether a node is known to write to none of its operands, although not what it computes."""
    return node.op == "call_method" and node.target in _READ_ONLY and "out" not in node.kwargs
