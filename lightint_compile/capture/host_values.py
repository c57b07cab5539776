"""Numbers that a model keeps in small integer tensors, known while Dynamo traces it.

Models make tensors of their sizes and read them back (``torch.tensor(x.shape[2:]).tolist()``), branch on them, hand
them on as sizes, and keep counters of their caches as tensors of one element (``cache["end"].item()``). Dynamo ends a
graph there: to it the value of a tensor is data. It is known where the tensor was made of sizes in the same graph
(``known_numbers``): what is read is a size again, a symbol where that is one. A counter that is an input is a size like
any other, read when the graph is called: static at first, a symbol once it changes, with Dynamo's own guards on it.

Nothing is assumed of a tensor that the graph may have written to in another way before it is read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.fx as fx
from torch._dynamo.source import AttrSource, CallFunctionNoArgsSource
from torch._dynamo.variables.base import VariableTracker
from torch._dynamo.variables.builder import VariableBuilder
from torch._dynamo.variables.lists import BaseListVariable
from torch._dynamo.variables.tensor import TensorVariable
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from lightint_compile.capture.known_numbers import KnownNumbers, is_few_numbers

log = logging.getLogger(__name__)

_graphs: ContextVar[dict[fx.Graph, KnownNumbers] | None] = ContextVar("lightint_known_numbers", default=None)
"""The graphs that are traced with help, by whoever asked for it; ``None`` where nobody did."""


@contextmanager
def numbers_read() -> Iterator[None]:
    """What this thread traces inside has its numbers read."""
    token = _graphs.set({})
    try:
        yield
    finally:
        _graphs.reset(token)


def are_numbers_read() -> bool:
    """Whether this thread traces for somebody who asked."""
    return _graphs.get() is not None


def answered(tensor: TensorVariable, tx: Any, name: str, args: Sequence[VariableTracker]) -> VariableTracker | None:
    """What a method of a tensor gives, as Dynamo's variables, where it is a number; ``None`` where it is data.

    Args:
        tx: Dynamo's translator, which traces the call.
        name: the method.
        args: what it is called with.
    """
    return _read(tensor, tx, name) if name in ("item", "tolist") and not args else None


def truth_of(value: VariableTracker, tx: Any) -> VariableTracker | None:
    """What a branch on a value asks, as a number, where it is a tensor whose number is known."""
    if type(value) is not TensorVariable or value.proxy.node.op == "placeholder":
        return None
    return _read(value, tx, "item")


def with_sizes(args: Sequence[VariableTracker], tx: Any) -> list[VariableTracker]:
    """Arguments of what takes sizes, tensors that stand for a size replaced by the size, also those in a list."""
    return [_size(each, tx) for each in args]


def with_named_sizes(kwargs: Mapping[str, VariableTracker], tx: Any) -> dict[str, VariableTracker]:
    """As :func:`with_sizes`, keyword arguments."""
    return {name: _size(each, tx) for name, each in kwargs.items()}


def _size(argument: VariableTracker, tx: Any) -> VariableTracker:
    argument = argument.realize()
    if type(argument) is TensorVariable:
        return _read_size(argument, tx) or argument
    if isinstance(argument, BaseListVariable) and any(
        type(each.realize()) is TensorVariable for each in argument.items
    ):
        return argument.clone(items=with_sizes(argument.items, tx))
    return argument


def _read_size(tensor: TensorVariable, tx: Any) -> VariableTracker | None:
    return _read(tensor, tx, "item") if tensor.ndim == 0 and tensor.dtype is not torch.bool else None


def _read(tensor: TensorVariable, tx: Any, name: str) -> VariableTracker | None:
    """A number, or a list of numbers, as Dynamo's variables; ``None`` where it is data."""
    graphs, node = _graphs.get(), tensor.as_proxy().node
    if graphs is None or node.graph is not tx.output.current_tracer.graph:
        return None
    known = graphs.setdefault(node.graph, KnownNumbers(node.graph))
    try:
        if node.op == "placeholder" and name == "item":
            return _counter(tensor, node, tx) if known.is_as_given(node, tx) else None
        values = known.of(node, tx)
        return None if values is None else VariableTracker.build(tx, getattr(values, name)())
    except Exception:
        log.debug("a number cannot be told", exc_info=True)
        return None


def _counter(tensor: TensorVariable, node: fx.Node, tx: Any) -> VariableTracker | None:
    """An input of one whole number as a size: Dynamo's own handling of an integer that is read from the tensor."""
    real: Any = getattr(node.meta.get("grapharg"), "example", None)
    if tensor.source is None or not isinstance(real, torch.Tensor) or isinstance(real, FakeTensor):
        return None
    if real.numel() != 1 or not is_few_numbers(real):
        return None
    with _disable_current_modes():
        value = real.item()
    return VariableBuilder(tx, CallFunctionNoArgsSource(AttrSource(tensor.source, "item")))(value)
