"""Numbers that a model keeps in small integer tensors, known while Dynamo traces it.

Models make tensors of their sizes and read them back (``torch.tensor(x.shape[2:]).tolist()``), and keep counters of
their caches as tensors of one element (``cache["end"].item()``). Dynamo ends a graph there: to it the value of a tensor
is data. It is known where the tensor was made of sizes in the same graph, which the graph is then specialised to; and a
counter that is an input is a size like any other, read when the graph is called: static at first, a symbol once it
changes, with Dynamo's own guards on it.

Numbers that the graph puts into such a tensor (``sizes[:, 0] = 3``) are put into its value as well. Nothing is assumed
of a tensor that the graph may have written to in another way before it is read.
"""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

import torch
import torch.fx as fx
from torch._dynamo.source import AttrSource, CallFunctionNoArgsSource
from torch._dynamo.variables.base import VariableTracker
from torch._dynamo.variables.builder import VariableBuilder
from torch._dynamo.variables.lists import BaseListVariable
from torch._dynamo.variables.tensor import TensorVariable
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

log = logging.getLogger(__name__)

_MOST = 64
"""Elements of the largest tensor that counts as numbers."""

_FUNCTIONS = frozenset(
    {
        *(torch.tensor, torch.as_tensor, torch.stack, torch.cat, torch.prod, torch.sum, torch.max, torch.min),
        torch._refs.tensor,  # what torch.tensor becomes where sizes are symbols
        *(math.prod, operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod),
        *(operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge),
    }
)
_METHODS = frozenset(
    {
        *("prod", "sum", "max", "min", "to", "long", "int", "cpu", "view", "reshape", "flatten", "unsqueeze"),
        *("squeeze", "clone", "repeat", "expand", "contiguous"),
    }
)
"""What is computed of known numbers. None of them writes."""

_TAKE_SIZES = frozenset(
    {"view", "reshape", "expand", "repeat", "new_zeros", "new_ones", "new_empty", "narrow", "unflatten"}
)
"""Methods whose arguments may be tensors of one number, which stand for it."""


class UnknownError(Exception):
    """A value that cannot be told."""


def answered(tensor: TensorVariable, tx: Any, name: str, args: Sequence[VariableTracker]) -> VariableTracker | None:
    """What a method of a tensor gives, as Dynamo's variables, where it is a number; ``None`` where it is data.

    Args:
        tx: Dynamo's translator, which traces the call.
        name: the method.
        args: what it is called with.
    """
    return _read(tensor, tx, name) if name in ("item", "tolist") and not args else None


def with_sizes(name: str, args: Sequence[VariableTracker], tx: Any) -> list[VariableTracker]:
    """The arguments of a method, tensors that stand for a size replaced by the size, also those in a list."""
    if name not in _TAKE_SIZES:
        return list(args)
    listed = args[0].realize() if len(args) == 1 else None
    if isinstance(listed, BaseListVariable) and any(
        isinstance(each.realize(), TensorVariable) for each in listed.items
    ):
        args = listed.items
    return [_size(each, tx) for each in args]


def _size(argument: VariableTracker, tx: Any) -> VariableTracker:
    argument = argument.realize()
    known = _read(argument, tx, "item") if isinstance(argument, TensorVariable) else None
    return argument if known is None else known


def _read(tensor: TensorVariable, tx: Any, name: str) -> VariableTracker | None:
    """A number, or a list of numbers, as Dynamo's variables; ``None`` where it is data."""
    try:
        node = tensor.as_proxy().node
        if node.op == "placeholder" and name == "item":
            return _counter(tensor, node, tx)
        value = _value_of(node)
        return VariableTracker.build(tx, getattr(value, name)()) if isinstance(value, torch.Tensor) else None
    except UnknownError:
        return None
    except Exception:
        log.debug("a number cannot be told", exc_info=True)
        return None


def _counter(tensor: TensorVariable, node: fx.Node, tx: Any) -> VariableTracker | None:
    """An input of one whole number as a size: Dynamo's own handling of an integer that is read from the tensor."""
    real: Any = getattr(node.meta.get("grapharg"), "example", None)
    if tensor.source is None or not isinstance(real, torch.Tensor) or isinstance(real, FakeTensor):
        return None
    if real.numel() != 1 or not _is_number(real) or _is_written(node):
        return None
    with _disable_current_modes():
        value = real.item()
    return VariableBuilder(tx, CallFunctionNoArgsSource(AttrSource(tensor.source, "item")))(value)


def _value_of(node: fx.Node) -> Any:
    """The value that a node has now, computed as far as it follows from sizes and constants, writes in their order.

    Raises:
        UnknownError: it depends on data, or may have been written to in a way that is not followed.
    """
    needed: set[fx.Node] = set()
    _collect(node, needed)
    values: dict[fx.Node, Any] = {}
    with _disable_current_modes():
        for each in node.graph.nodes if len(needed) > 1 else needed:
            if each in needed:
                values[each] = _evaluated(each, values)
    return values[node]


def _collect(node: fx.Node, needed: set[fx.Node]) -> None:
    """Add a node, all that it is computed from, and all that was written into these."""
    if node in needed:
        return
    needed.add(node)
    held = node.meta.get("example_value")
    if isinstance(held, (int, bool, torch.SymInt, torch.Size)):
        return
    if not _is_put(node):
        if not _is_number(held) or held.device.type != "cpu" or not _is_pure(node):
            raise UnknownError
        for user in _writers(node):
            if not _is_put(user):
                raise UnknownError
            _collect(user, needed)
    for source in node.all_input_nodes:
        _collect(source, needed)


def _evaluated(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    held = node.meta.get("example_value")
    if isinstance(held, (int, bool)):
        return held
    if isinstance(held, torch.SymInt):
        return int(held)  # with a guard of its own
    if isinstance(held, torch.Size):
        return torch.Size(int(extent) for extent in held)
    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
    return node.target(*args, **kwargs) if callable(node.target) else getattr(args[0], node.target)(*args[1:], **kwargs)


def _is_number(value: Any) -> TypeGuard[torch.Tensor]:
    """Whether a value is a tensor of few whole numbers, of a size that is no symbol."""
    if not isinstance(value, torch.Tensor) or value.is_floating_point() or value.is_complex():
        return False
    return all(isinstance(extent, int) for extent in value.shape) and value.numel() <= _MOST


def _is_pure(node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target in _FUNCTIONS
    return node.op == "call_method" and node.target in _METHODS


def _is_put(node: fx.Node) -> bool:
    """Whether a node puts something into a part of a tensor."""
    return node.op == "call_function" and node.target is operator.setitem


def _is_written(node: fx.Node) -> bool:
    """Whether anything that uses the tensor's memory so far may write to it."""
    return any(True for _ in _writers(node))


def _writers(node: fx.Node) -> Iterator[fx.Node]:
    """What may have written to the tensor's memory so far: all that uses it and is not known to compute only."""
    memory = _memory_of(node)
    for other in node.graph.nodes:
        if _memory_of(other) == memory:
            yield from (user for user in other.users if _may_write(user, other))


def _may_write(user: fx.Node, tensor: fx.Node) -> bool:
    if _is_put(user):
        return user.args[0] is tensor
    return not _is_pure(user) and user.op != "output" and user.target not in _TAKE_SIZES


def _memory_of(node: fx.Node) -> int | None:
    held = node.meta.get("example_value")
    return int(held.untyped_storage()._cdata) if _is_number(held) else None
