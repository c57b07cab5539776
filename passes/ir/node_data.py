"""Values and nodes as comparable data: dtype, device, sizes and strides, operator and constants, wiring left out."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import sympy
import torch
import torch.fx as fx

from lightint_compile.passes.ir.looks import Looks

#: A size or stride as it is compared: an integer, or what a rule makes of a symbolic expression.
Rule = Callable[[sympy.Expr], Hashable]


def anonymous(expression: sympy.Expr) -> Hashable:
    """The rule under which all symbolic sizes are alike; used to propose candidates, never to decide."""
    return "?"


def described(value: Any, rule: Rule) -> Hashable:
    """A fake value as data: everything that code compiled for it may rely on.

    The stride of a dimension of size one is left out: no element is ever reached through it.
    """
    if isinstance(value, torch.Tensor):
        return ("tensor", value.dtype, str(value.device), *_layout(value, rule))
    if isinstance(value, (tuple, list)):
        return ("tuple", tuple(described(item, rule) for item in value))
    if isinstance(value, torch.SymInt):
        return ("size", size_described(value, rule))
    return (type(value).__name__,) if isinstance(value, (torch.SymFloat, torch.SymBool)) else constant(value)


def _layout(tensor: torch.Tensor, rule: Rule) -> tuple[Hashable, Hashable]:
    sizes: tuple[Hashable, ...] = tuple(tensor.shape)
    strides: tuple[Hashable, ...] = tensor.stride() if tensor.layout is torch.strided else ()
    if tensor._has_symbolic_sizes_strides:
        sizes, strides = (tuple(size_described(each, rule) for each in numbers) for numbers in (sizes, strides))
    return sizes, tuple(None if size == 1 else stride for size, stride in zip(sizes, strides, strict=False))


def size_described(size: Any, rule: Rule) -> Hashable:
    """One size or stride as data."""
    if isinstance(size, torch.SymInt):
        expression = size.node.expr
        return int(expression) if isinstance(expression, sympy.Integer) else rule(expression)
    return int(size)


def constant(value: Any) -> Hashable:
    """A Python constant as data: ``1``, ``1.0`` and ``True`` differ, and so do ``0.0`` and ``-0.0``."""
    if isinstance(value, (tuple, list)):
        return tuple(constant(item) for item in value)
    if isinstance(value, dict):
        return tuple((key, constant(item)) for key, item in sorted(value.items()))
    if isinstance(value, slice):
        return ("slice", constant(value.start), constant(value.stop), constant(value.step))
    return (type(value).__name__, repr(value))


@dataclass(frozen=True)
class _Input:
    """Stands for a node among a call's arguments."""


_INPUT = _Input()


def wiring_free(arguments: Any) -> Hashable:
    """A call's arguments as data, with every node replaced by one mark."""
    if isinstance(arguments, fx.Node):
        return _INPUT
    if isinstance(arguments, (tuple, list)):
        return tuple(wiring_free(item) for item in arguments)
    if isinstance(arguments, dict):
        return tuple((key, wiring_free(item)) for key, item in sorted(arguments.items()))
    if isinstance(arguments, slice):
        return ("slice", wiring_free(arguments.start), wiring_free(arguments.stop), wiring_free(arguments.step))
    return constant(arguments)


def graph_described(module: fx.GraphModule) -> Hashable:
    """A graph that control flow calls as data: its text, and what it holds, tensors by identity."""
    held = []
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value = attrgetter(str(node.target))(module)
            held.append(graph_described(value) if isinstance(value, fx.GraphModule) else id(value))
    return ("graph", str(module.graph), tuple(held))


def argument_nodes(node: fx.Node) -> list[fx.Node]:
    """The nodes among a call's arguments, in order and with repetitions (``all_input_nodes`` drops repetitions)."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, {key: node.kwargs[key] for key in sorted(node.kwargs)}), _collector(found))
    return found


def _collector(found: list[fx.Node]) -> Callable[[fx.Node], fx.Node]:
    def collect(node: fx.Node) -> fx.Node:
        found.append(node)
        return node

    return collect


class _Asked:
    """A rule that tells whether it was asked of any symbolic size."""

    def __init__(self, rule: Rule) -> None:
        self._rule, self.asked = rule, False

    def __call__(self, expression: sympy.Expr) -> Hashable:
        self.asked = True
        return self._rule(expression)


class Tokens:
    """Small integers for nodes, equal where operator, constants and value are equal; wiring is left out.

    Equal looks have equal tokens, so that what makes one is put together once for all nodes that look alike.

    Args:
        looks: those of the program whose nodes they are, which do not change while there are tokens of them.
    """

    def __init__(self, looks: Looks | None = None) -> None:
        self._looks = Looks() if looks is None else looks
        self._numbers: dict[Hashable, int] = {}
        self._of: dict[fx.Node, int] = {}
        self._of_looks: dict[Hashable, int] = {}
        self._arguments: dict[fx.Node, list[fx.Node]] = {}
        self._plain: dict[int, Hashable] = {}
        self._constants: dict[tuple[int, bool], Hashable] = {}

    def number(self, key: Hashable) -> int:
        """A number for ``key``, the same for equal keys."""
        return self._numbers.setdefault(key, len(self._numbers))

    def of(self, node: fx.Node) -> int:
        """The token of one node; placeholders are alike when their values are."""
        token = self._of.get(node)
        if token is None:
            look = (self._looks.of(node).call, *_marks(node))
            token = self._of_looks.get(look)
            if token is None:
                self._of_looks[look] = token = self.number(self._key(node))
            self._of[node] = token
        return token

    def value_number(self, node: fx.Node) -> int:
        """A number for the value of a node: equal numbers are described alike by every rule."""
        return self._looks.value(node)

    def value(self, node: fx.Node, rule: Rule) -> Hashable:
        """The value of a node as data; one without symbolic sizes is described once for all rules."""
        number = self.value_number(node)
        known = self._plain.get(number)
        if known is None:
            rules = _Asked(rule)
            known = described(node.meta.get("val"), rules)
            if not rules.asked:
                self._plain[number] = known
        return known

    def constants(self, node: fx.Node, *, but_second: bool = False) -> Hashable:
        """What a call is, without its wiring: target and constants; or without its second argument as well."""
        place = self._looks.of(node).call, but_second
        known = self._constants.get(place)
        if known is None:
            args = (node.args[0], *node.args[2:]) if but_second else node.args
            known = self.number((node.target, wiring_free(args), wiring_free(node.kwargs)))
            self._constants[place] = known
        return known

    def arguments(self, node: fx.Node) -> list[fx.Node]:
        """:func:`argument_nodes`, found once a node."""
        found = self._arguments.get(node)
        if found is None:
            self._arguments[node] = found = argument_nodes(node)
        return found

    def _key(self, node: fx.Node) -> Hashable:
        value = self.value(node, anonymous)
        if node.op in ("placeholder", "get_attr"):
            return ("input", value)
        return (node.op, node.target, wiring_free(node.args), wiring_free(node.kwargs), value, _marks(node))


def _marks(node: fx.Node) -> tuple[Hashable, Hashable]:
    return node.meta.get("memo"), node.meta.get("sequence")
