"""Results of compiled code lie in memory as its graph says: in whose, and with which dimension innermost.

Inductor drops ``x * 1``, ``x + 0`` and their like, with factors that are tensors of constants or, from torch 2.14 on,
numbers, and then returns ``x`` itself: a write into the result would change the caller's argument. Which results are
so is a property of the compiled code, so that looking once is enough. Likewise the order of dimensions: a ``cat`` of
one transposed tensor is contiguous, Inductor's stays transposed, and the next piece of compiled code relies on it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree

from lightint_compile.passes.ir.fake_values import hint_of, hinted_shape
from lightint_compile.passes.ir.memory_sharing import memory_of


def stated_memory(graph: fx.Graph) -> tuple[int, ...]:
    """For each result which memory it may have by the graph: below zero an argument's, the first being -1."""
    numbers = {node: -1 - place for place, node in enumerate(graph.find_nodes(op="placeholder"))}
    results = pytree.tree_leaves(graph.output_node().args)
    return tuple(
        numbers.setdefault(memory_of(result), place) if isinstance(result, fx.Node) else place
        for place, result in enumerate(results)
    )


def traced_memory(graph: fx.Graph) -> tuple[int, ...]:
    """:func:`stated_memory` of a graph as Dynamo captured it, by the storages of its fake values.

    Empty where a value has none.
    """
    numbers: dict[Hashable, int] = {}
    for place, node in enumerate(graph.find_nodes(op="placeholder")):
        if isinstance(value := node.meta.get("example_value"), torch.Tensor):
            numbers.setdefault(_storage(value), -1 - place)
    stated = []
    for place, result in enumerate(pytree.tree_leaves(graph.output_node().args)):
        value = result.meta.get("example_value") if isinstance(result, fx.Node) else None
        if isinstance(result, fx.Node) and value is None:
            return ()
        stated.append(numbers.setdefault(_storage(value), place) if isinstance(value, torch.Tensor) else place)
    return tuple(stated)


Order = tuple[int, ...]
"""Dimensions from the outermost in memory to the innermost."""


def stated_orders(graph: fx.Graph) -> tuple[Order, ...]:
    """For each result the order of its dimensions by the graph; empty where it has gaps, or views something else."""
    memory = stated_memory(graph)
    results = pytree.tree_leaves(graph.output_node().args)
    return tuple(
        _order(result.meta.get("val")) if isinstance(result, fx.Node) and memory[place] == place else ()
        for place, result in enumerate(results)
    )


def _order(value: Any) -> Order:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        return ()
    sizes, strides = hinted_shape(value), [hint_of(stride) for stride in value.stride()]
    order = sorted(range(len(sizes)), key=lambda dim: -strides[dim])  # of equal strides the first stays outside
    span = 1
    for dim in reversed(order):
        if sizes[dim] != 1 and strides[dim] != span:
            return ()
        span *= sizes[dim]
    return tuple(order)


class FreshResults:
    """Copies those results of compiled code that do not lie in memory as the graph states.

    Args:
        stated: as of :func:`stated_memory`; empty for code that runs the graph as it is.
        orders: as of :func:`stated_orders`; empty where nothing relies on them.
    """

    def __init__(self, stated: Sequence[int] = (), orders: Sequence[Sequence[int]] = ()) -> None:
        self.stated = tuple(stated)
        self.orders = tuple(map(tuple, orders))
        self._copied: dict[int, Order] | None = None if stated else {}

    def of(self, args: Sequence[Any], results: Sequence[Any]) -> Sequence[Any]:
        """``results`` of a call with ``args``; the first call finds which of them are to be copied."""
        if self._copied is None:
            self._copied = dict.fromkeys(self._misplaced(args, results), ()) | self._transposed(results)
        if not self._copied:
            return results
        return tuple(
            _copied(result, self._copied[place]) if place in self._copied else result
            for place, result in enumerate(results)
        )

    def behind(self, function: Callable[..., Sequence[Any]]) -> Callable[..., Sequence[Any]]:
        """``function`` with a check of its results."""
        return lambda *args: self.of(args, function(*args))

    def _transposed(self, results: Sequence[Any]) -> dict[int, Order]:
        """Places of results whose dimensions lie in another order, with the right one."""
        stated = enumerate(zip(results, self.orders, strict=True)) if self.orders else ()
        return {
            place: order
            for place, (result, order) in stated
            if order and isinstance(result, torch.Tensor) and not result.permute(order).is_contiguous()
        }

    def _misplaced(self, args: Sequence[Any], results: Sequence[Any]) -> tuple[int, ...]:
        owners: dict[Hashable, set[int]] = {}
        for place, arg in enumerate(args):
            if isinstance(arg, torch.Tensor):
                owners.setdefault(_storage(arg), set()).add(-1 - place)
        found = []
        for place, (result, memory) in enumerate(zip(results, self.stated, strict=True)):
            if not isinstance(result, torch.Tensor):
                continue
            if memory not in owners.setdefault(_storage(result), {memory}):
                found.append(place)
        return tuple(found)


def _copied(result: torch.Tensor, order: Order) -> torch.Tensor:
    if not order:
        return result.clone()
    back = sorted(range(len(order)), key=order.__getitem__)
    return result.permute(order).clone(memory_format=torch.contiguous_format).permute(back)


def _storage(tensor: torch.Tensor) -> Hashable:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse, or a subclass that has no storage
        return id(tensor)
