"""Copies of what a call may write, so that a model can be run without its caller noticing.

A forward pass may fill a cache that it was given, write to buffers, set attributes, draw random numbers, call hooks
that write somewhere else. All that is reachable from the module and its arguments is copied together, so that what was
shared stays shared; functions get copies of what they close over and of the globals that they name.
"""

from __future__ import annotations

import copy
import math
import random
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from lightint_compile.capture.foreign_tensors import is_foreign
from lightint_compile.errors import StateError, told

Invocation = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""A module or function, and what it is called with."""

SHARE = 0.5
"""Of the free memory of a device, at most so much is used for copies: the run itself needs some as well."""


def copied(module: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Invocation:
    """The same call on copies.

    Raises:
        StateError: something cannot be copied, or there is no room for the copies; it says what, or how large they are.
    """
    memo: dict[int, Any] = {}
    call = (module, tuple(args), dict(kwargs))
    try:
        tensors = list(_tensors(call))
        _check_room(tensors)
        for tensor in tensors:
            if not tensor.is_leaf:  # which deepcopy refuses, though nothing is learnt here
                memo[id(tensor)] = tensor.detach().clone()
        return _copy(call, memo)
    except StateError:
        raise
    except Exception as error:
        raise StateError("what the call may write cannot be copied", why=told(error)) from error


@contextmanager
def randomness_kept() -> Iterator[None]:
    """The generators of torch, Python and NumPy are set back: what is drawn inside is drawn again afterwards."""
    numpy = sys.modules.get("numpy")
    state, numbers = random.getstate(), numpy.random.get_state() if numpy else None
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        try:
            yield
        finally:
            random.setstate(state)
            if numpy:
                numpy.random.set_state(numbers)


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    for each in _reachable(value):
        if isinstance(each, types.FunctionType):
            _copy_function(each, memo)
    return copy.deepcopy(value, memo)


def _copy_function(function: types.FunctionType, memo: dict[int, Any]) -> None:
    """Enter a copy of ``function`` in ``memo``: its cells, defaults, attributes and named globals are copies too."""
    cells, state = function.__closure__ or (), _named_state(function)
    if id(function) in memo or not (cells or state or function.__defaults__ or function.__kwdefaults__):
        return
    named = dict(function.__globals__) if state else function.__globals__
    empty = tuple(types.CellType() for _ in cells)
    made = types.FunctionType(function.__code__, named, function.__name__, None, empty)
    memo[id(function)] = made
    for old, new in zip(cells, empty, strict=True):
        if _is_filled(old):
            new.cell_contents = _copy(old.cell_contents, memo)
    made.__defaults__ = _copy(function.__defaults__, memo)
    made.__kwdefaults__ = _copy(function.__kwdefaults__, memo)
    made.__qualname__, made.__module__ = function.__qualname__, function.__module__
    vars(made).update(_copy(dict(vars(function)), memo))
    if state:
        named.pop("__name__", None)  # by which Dynamo would look into the module itself
        named.update(_copy(state, memo))


_STATE = (torch.nn.Module, torch.Tensor, list, dict, set, bytearray)


def _named_state(function: types.FunctionType) -> dict[str, Any]:
    """What the function names of its module's globals and could write to; functions beside it may do so for it."""
    found = {n: function.__globals__[n] for n in function.__code__.co_names if n in function.__globals__}
    return {name: value for name, value in found.items() if isinstance(value, _STATE) or _is_beside(value, function)}


def _is_beside(value: Any, function: types.FunctionType) -> bool:
    return isinstance(value, types.FunctionType) and value.__globals__ is function.__globals__ and value is not function


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _reachable(value: Any) -> Iterator[Any]:
    """``value`` and what it holds: in containers, in attributes of objects, and in what functions close over."""
    pending, seen = [value], set[int]()
    while pending:
        each = pending.pop()
        if id(each) in seen or isinstance(each, (type, types.ModuleType, types.CodeType, str, bytes, int, float)):
            continue
        seen.add(id(each))
        yield each
        pending.extend(_parts(each))


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        return [*cells, value.__defaults__, value.__kwdefaults__, *_named_state(value).values()]
    if isinstance(value, types.MethodType):
        return [value.__self__]
    slots = [getattr(value, name, None) for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    return [*slots, *getattr(value, "__dict__", {}).values()]


def _tensors(value: Any) -> list[torch.Tensor]:
    return [each for each in _reachable(value) if isinstance(each, torch.Tensor)]


def _check_room(tensors: Sequence[torch.Tensor]) -> None:
    """The tensors that a foreign one holds are among ``tensors``, and it has no memory beside theirs."""
    sizes: dict[torch.device, dict[int, int]] = {}
    for tensor in tensors:
        if not (tensor.is_meta or is_foreign(tensor)) and tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            sizes.setdefault(tensor.device, {})[storage.data_ptr()] = storage.nbytes()
    for device, storages in sizes.items():
        needed, free = sum(storages.values()), free_memory(device)
        if needed > SHARE * free:
            raise StateError(
                "there is no room for copies of what the call may write",
                where=str(device),
                why=f"they need {needed / 2**30:.3g} GiB, and {free / 2**30:.3g} GiB are free",
            )


def free_memory(device: torch.device) -> float:
    """Bytes that can still be allocated on a device; infinite where that is unknown."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            sizes = dict(line.split(":", 1) for line in file)
        return 1024.0 * int(sizes["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return math.inf
