"""What the tensors of a graph that Dynamo is tracing hold, where they are made of sizes and constants.

A graph is read once, node after node, as it grows. A tensor of few whole numbers is known where it was made of known
ones, in this graph; numbers that the graph puts into parts of it are put into its value, which its views share.
Memory that anything else may have written to is data from then on, whatever shows it.
"""

from __future__ import annotations

import functools
import logging
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np
import torch
import torch.fx as fx
import torch.utils._pytree as pytree
from torch._dynamo.variables.tensor import SymNodeVariable

from lightint_compile.capture.number_operations import (
    Arithmetic,
    Computation,
    Number,
    Numbers,
    UnknownError,
    augmented,
    computation,
    fitted,
    index_of,
    int_or_bool,
    keywords,
    makes_numbers,
    number_in,
    numbers,
    only_reads,
)

log = logging.getLogger(__name__)

_MOST = 64
"""Elements of the largest tensor that counts as numbers."""


@dataclass
class _Memory:
    """Memory whose numbers are known.

    Attributes:
        base: the value that it was made with; those of views share memory with it.
        shown_by: the nodes whose values lie in it.
    """

    base: Numbers
    shown_by: list[fx.Node] = field(default_factory=list)


class KnownNumbers:
    """The numbers of one graph's tensors, as of its last node."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._forget_all()

    def of(self, node: fx.Node, tx: Any) -> Numbers | None:
        """What a node's tensor holds now; ``None`` where it is data."""
        self._catch_up(tx)
        return self._values.get(node)

    def is_as_given(self, node: fx.Node, tx: Any) -> bool:
        """Whether nothing of the graph may have written to the memory of an input."""
        self._catch_up(tx)
        return self._written.isdisjoint(_memories_of(node))

    def _forget_all(self) -> None:
        self._last: fx.Node | None = None
        self._values: dict[fx.Node, Numbers] = {}
        self._known: dict[int, _Memory] = {}
        self._written: set[int] = set()

    def _catch_up(self, tx: Any) -> None:
        if self._last is not None and self._last.prev.next is not self._last:
            self._forget_all()  # Dynamo took nodes back
        for node in _after(self._graph, self._last):
            self._last = node
            if node.op in ("call_function", "call_method"):
                self._read(node, tx)
            elif node.op != "placeholder":
                self._write(*node.all_input_nodes)

    def _read(self, node: fx.Node, tx: Any) -> None:
        if node.target is operator.setitem or augmented(node) is not None:
            self._put(node, tx)
            return
        compute = computation(node)
        if compute is None:
            if not only_reads(node):
                self._write(*node.all_input_nodes)
        elif makes_numbers(node) or not self._values.keys().isdisjoint(node.all_input_nodes):
            self._compute(node, compute, tx)

    def _compute(self, node: fx.Node, compute: Computation, tx: Any) -> None:
        try:
            args, kwargs = self._told((tuple(node.args), keywords(node)), tx)
            self._keep(node, compute(Arithmetic(tx), *args, **kwargs))
        except Exception:
            log.debug("what %s computes cannot be told", node.target, exc_info=True)

    def _put(self, node: fx.Node, tx: Any) -> None:
        """Numbers into a part of a tensor, or joined with all of it."""
        target, join = node.args[0], augmented(node)
        assert isinstance(target, fx.Node)
        value = self._values.get(target)
        try:
            if value is None:
                raise UnknownError
            *index, put = self._told(tuple(node.args[1:]), tx)
            made = numbers(put) if join is None else Arithmetic(tx).over(join, value, put)
            value[index_of(*index) if index else ...] = fitted(made, target.meta["example_value"].dtype)
        except Exception:
            log.debug("what is put into a tensor cannot be told", exc_info=True)
            self._write(target)
        else:
            self._keep(node, value)

    def _keep(self, node: fx.Node, value: Numbers) -> None:
        """Let a node have a value that is in its own memory, or else in that of what it shows a part of."""
        held = node.meta.get("example_value")
        if not is_few_numbers(held) or value.shape != tuple(held.shape):
            return
        (memory,) = _memories_of(node)
        if memory not in self._known and memory not in self._written:
            value = fitted(value, held.dtype)
            self._known[memory] = _Memory(value)
        known = self._known.get(memory)
        if known is not None and np.shares_memory(value, known.base):
            known.shown_by.append(node)
            self._values[node] = value

    def _write(self, *nodes: fx.Node) -> None:
        """Data from now on: all that lies in the memory of these."""
        for memory in (memory for node in nodes for memory in _memories_of(node)):
            self._written.add(memory)
            known = self._known.pop(memory, None)
            for node in known.shown_by if known is not None else ():
                self._values.pop(node, None)

    def _told(self, arguments: Any, tx: Any) -> Any:
        return fx.map_arg(arguments, functools.partial(self._operand, tx))

    def _operand(self, tx: Any, node: fx.Node) -> Any:
        held = node.meta.get("example_value")
        if node in self._values:
            return self._values[node]
        if isinstance(held, torch.Size):
            proxy = tx.output.current_tracer.proxy(node)
            return tuple(
                _symbol(proxy[place], extent, tx) if isinstance(extent, torch.SymInt) else extent
                for place, extent in enumerate(held)
            )
        if isinstance(held, (torch.SymInt, torch.SymBool)):
            return _symbol(tx.output.current_tracer.proxy(node), held, tx)
        return int_or_bool(held)


def _symbol(proxy: fx.Proxy, held: Any, tx: Any) -> Number:
    return number_in(SymNodeVariable.create(tx, proxy, held))


def is_few_numbers(value: Any) -> TypeGuard[torch.Tensor]:
    """Whether a value is a tensor of few whole numbers, of a size that is no symbol."""
    if not isinstance(value, torch.Tensor) or value.is_floating_point() or value.is_complex():
        return False
    return all(isinstance(extent, int) for extent in value.shape) and value.numel() <= _MOST


def _memories_of(node: fx.Node) -> list[int]:
    """The memory of a node's tensors, each as a number while the graph lives."""
    held = node.meta.get("example_value")
    tensors = [held] if isinstance(held, torch.Tensor) else pytree.tree_leaves(held)
    return [int(each.untyped_storage()._cdata) for each in tensors if _has_memory(each)]


def _has_memory(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout is torch.strided


def _after(graph: fx.Graph, node: fx.Node | None) -> Iterator[fx.Node]:
    """The nodes behind ``node``, those that come meanwhile included; all for ``None``."""
    following = next(iter(graph.nodes), None) if node is None else node.next
    while following is not None and following.op != "root":
        yield following
        following = following.next
