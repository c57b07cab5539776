"""What a node looks like to a rule about its operation, as numbers: equal numbers look alike.

A model has the same block many times over. A rule that reads nothing but a node's operation, its constants, its value
and what is known of its operands finds the same at all nodes that look alike, so it need be run at one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
import torch.fx as fx

from lightint_compile.passes.ir.fake_values import described


class Look(NamedTuple):
    """A node's look.

    Attributes:
        call: number of its operation and constants, of the wiring of its operands among the arguments and of its value.
        value: number of its value alone, for whoever reads it.
    """

    call: int
    value: int


class Looks:
    """The looks of the nodes of a program.

    What was found at a node holds for as long as target, arguments and value are the very same objects, which is asked
    whenever its look is. Arguments are immutable, and a value is replaced where it changes.
    """

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._values: dict[fx.Node, tuple[Any, int]] = {}
        self._of: dict[fx.Node, tuple[Any, Any, Any, Any, Look]] = {}

    def of(self, node: fx.Node) -> Look:
        """The look of a node as it is now."""
        target, args, kwargs, value = node.target, node.args, node.kwargs, node.meta.get("val")
        known = self._of.get(node)
        if known is not None and known[1] is args and known[3] is value and known[2] is kwargs and known[0] is target:
            return known[4]
        place = {source: index for index, source in enumerate(node.all_input_nodes)}
        number, wiring = self.value(node), (_key(args, place.__getitem__), _key(kwargs, place.__getitem__))
        look = Look(self.number((node.op, target, *wiring, number)), number)
        self._of[node] = target, args, kwargs, value, look
        return look

    def value(self, node: fx.Node) -> int:
        """The number of a node's value as it is now."""
        value = node.meta.get("val")
        known = self._values.get(node)
        if known is None or known[0] is not value:
            known = self._values[node] = value, self.number(described(value))
        return known[1]

    def arguments(self, arguments: Any) -> Hashable:
        """Arguments as a key in which nodes count as their values: equal ones behave alike under every operation on
        fake values."""
        return _key(arguments, self.value)

    def number(self, key: Hashable) -> int:
        """A number for ``key``, the same for equal keys."""
        return self._numbers.setdefault(key, len(self._numbers))


_OPERAND = object()
"""Tells an operand's number from a constant."""


_SIMPLE = frozenset((int, bool, str, type(None), torch.dtype, torch.device))
"""Constants that are equal where type and value are; of floats two zeros differ."""


def _key(arguments: Any, operand: Callable[[fx.Node], int]) -> Any:
    kind = type(arguments)
    if kind in _SIMPLE:
        return kind, arguments
    if kind is fx.Node:
        return _OPERAND, operand(arguments)
    if isinstance(arguments, (tuple, list)):
        return tuple([_key(entry, operand) for entry in arguments])
    if isinstance(arguments, dict):
        return tuple([(key, _key(entry, operand)) for key, entry in sorted(arguments.items())])
    if isinstance(arguments, slice):
        return slice, _key((arguments.start, arguments.stop, arguments.step), operand)
    return described(arguments)
