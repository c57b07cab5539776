"""What a node looks like to a rule about its operation, as numbers: equal numbers look alike.

A model has the same block many times over. A rule that reads nothing but a node's operation, its constants, its value
and what is known of its operands finds the same at all nodes that look alike, so it need be run at one of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

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

    What was found at a node holds for as long as target, arguments and value are the very same objects; each is looked
    at again whenever its look is asked for. Arguments are immutable, and a value is replaced where it changes.
    """

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._of: dict[fx.Node, tuple[Any, Any, Any, Any, Look]] = {}

    def of(self, node: fx.Node) -> Look:
        """The look of a node as it is now."""
        target, args, kwargs, value = node.target, node.args, node.kwargs, node.meta.get("val")
        known = self._of.get(node)
        if (
            known is not None
            and known[1] is args
            and known[3] is value
            and known[2] is kwargs
            and known[0] is target
        ):
            return known[4]
        number = self.number(described(value))
        place = {source: index for index, source in enumerate(node.all_input_nodes)}
        call = self.number((node.op, target, _wired(args, place), _wired(kwargs, place), number))
        look = Look(call, number)
        self._of[node] = target, args, kwargs, value, look
        return look

    def number(self, key: Hashable) -> int:
        """A number for ``key``, the same for equal keys."""
        return self._numbers.setdefault(key, len(self._numbers))


def _wired(arguments: Any, place: Mapping[fx.Node, int]) -> Any:
    """Arguments as a key, operands by number. Constants are no plain numbers there: their type is beside them."""
    if isinstance(arguments, fx.Node):
        return place[arguments]
    if isinstance(arguments, (tuple, list)):
        return tuple([_wired(entry, place) for entry in arguments])
    if isinstance(arguments, dict):
        return tuple([(key, _wired(entry, place)) for key, entry in sorted(arguments.items())])
    if isinstance(arguments, slice):
        return slice, _wired((arguments.start, arguments.stop, arguments.step), place)
    return described(arguments)
