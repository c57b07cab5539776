"""The canonical form of a piece of a graph: two pieces with equal forms are the same function of their inputs.

A form lists a piece's nodes in an order that depends on its structure alone, so pieces compare equal whatever the order
of their nodes in the graph. Equality covers operators, constants, wiring within the piece and from its inputs, and the
dtypes, devices, sizes and strides of all values, symbolic sizes up to one consistent renaming.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import sympy
import torch
import torch.fx as fx

from lightint_compile.passes.ir.node_data import Tokens, constant, graph_described
from lightint_compile.passes.ir.node_queries import MEMO, Dependencies, graph_of

aten = torch.ops.aten

#: Operators whose second operand may be a Python number; a zero-dimensional tensor in its place is the same.
_TAKES_NUMBER = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor}


@dataclass(frozen=True, eq=False)
class Form:
    """One piece in canonical order.

    Attributes:
        key: a number, equal for equal pieces (up to ``numbers``).
        nodes: the piece's nodes in canonical order.
        inputs: the values from outside, in the order in which the nodes first read them.
        numbers: the Python factors and terms that were left out of the key, by the index of their node.
    """

    key: int
    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    numbers: dict[int, float]


class Forms:
    """Forms of the pieces of a graph, each found once; a piece is known by its list of nodes."""

    def __init__(self, dependencies: Dependencies, tokens: Tokens) -> None:
        self._dependencies, self._tokens = dependencies, tokens
        self._found: dict[tuple[int, bool], tuple[Collection[fx.Node], Form]] = {}

    def of(self, nodes: Collection[fx.Node], *, exact: bool) -> Form:
        """See :func:`form_of`."""
        place = id(nodes), exact
        if place not in self._found:
            # The nodes are held, so that no other list takes their place in memory.
            self._found[place] = nodes, form_of(nodes, self._dependencies, self._tokens, exact=exact)
        return self._found[place][1]


def form_of(nodes: Collection[fx.Node], dependencies: Dependencies, tokens: Tokens, *, exact: bool) -> Form:
    """The form of a piece.

    Args:
        exact: compare all constants; otherwise pieces that differ in the numbers they scale or shift tensors by (the
            step size of an Euler update) have one key.
    """
    ordered = _canonical_order(nodes, dependencies, tokens)
    inputs: dict[fx.Node, int] = {}
    place = {node: index for index, node in enumerate(ordered)}
    for node in ordered:
        for source in tokens.arguments(node):
            if source not in place and graph_of(source) is None:
                inputs.setdefault(source, len(inputs))
    values = _Values(tokens)
    numbers: dict[int, float] = {}
    entries: list[Hashable] = [values.of(source) for source in inputs]
    for index, node in enumerate(ordered):
        if not exact and is_scaled(node):
            numbers[index] = float(node.args[1])  # type: ignore[arg-type]
        wiring = tuple([_wire(source, place, inputs) for source in tokens.arguments(node)])
        call = tokens.constants(node, but_second=index in numbers)
        entries.append((call, wiring, values.of(node), node.meta.get(MEMO)))
    return Form(tokens.number(tuple(entries)), tuple(ordered), tuple(inputs), numbers)


class _Values:
    """Values as data of one form, equal ones described once."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens, self._rename = tokens, _Renaming()
        self._known: dict[int, int] = {}

    def of(self, node: fx.Node) -> int:
        """A number for the value of a node, with its symbols named by first appearance in the form."""
        number = self._tokens.value_number(node)
        known = self._known.get(number)
        if known is None:
            known = self._known[number] = self._tokens.number(("value", self._tokens.value(node, self._rename)))
        return known


def _wire(source: fx.Node, place: Mapping[fx.Node, int], inputs: Mapping[fx.Node, int]) -> Hashable:
    """Where an argument comes from: a node of the piece, an input of it, or a graph, which is a constant."""
    inside = place.get(source)
    if inside is not None:
        return inside
    graph = graph_of(source)
    return -1 - inputs[source] if graph is None else graph_described(graph)


def is_scaled(node: fx.Node) -> bool:
    """Whether a node combines a floating-point tensor, not zero-dimensional, with a Python float."""
    if node.target not in _TAKES_NUMBER or not isinstance(node.args[1], float) or not isinstance(node.args[0], fx.Node):
        return False
    value = node.args[0].meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 0


class _Renaming:
    """A :data:`~passes.ir.node_data.Rule` that numbers symbols by first appearance."""

    def __init__(self) -> None:
        self._numbers: dict[sympy.Symbol, int] = {}
        self._known: dict[sympy.Expr, Hashable] = {}

    def __call__(self, expression: sympy.Expr) -> Hashable:
        known = self._known.get(expression)
        if known is None:
            symbols = _symbols_of(expression)
            for symbol in symbols:
                self._numbers.setdefault(symbol, len(self._numbers))
            known = _renamed(expression, tuple([(symbol, self._numbers[symbol]) for symbol in symbols]))
            self._known[expression] = known
        return known


@lru_cache(maxsize=4096)
def _symbols_of(expression: sympy.Expr) -> tuple[sympy.Symbol, ...]:
    return tuple(sorted(expression.free_symbols, key=str))


@lru_cache(maxsize=4096)
def _renamed(expression: sympy.Expr, numbers: tuple[tuple[sympy.Symbol, int], ...]) -> Hashable:
    return constant(expression.xreplace({s: sympy.Symbol(f"n{number}", **s.assumptions0) for s, number in numbers}))


def _canonical_order(nodes: Collection[fx.Node], dependencies: Dependencies, tokens: Tokens) -> list[fx.Node]:
    """Depth first from the piece's last values, those in the order of a hash of all they come from."""
    inside = set(nodes)
    look: dict[fx.Node, int] = {}
    for node in sorted(nodes, key=dependencies.position.__getitem__):
        sources = _sources(node, dependencies, tokens)
        producers = tuple([look[s] if s in look else -1 - tokens.of(s) for s in sources])
        look[node] = tokens.number((tokens.of(node), producers))
    sinks = [node for node in look if not any(user in inside for user in dependencies.after(node))]
    ordered: dict[fx.Node, None] = {}
    for sink in sorted(sinks, key=look.__getitem__):
        _visit(sink, inside, lambda node: _sources(node, dependencies, tokens), ordered)
    return list(ordered)


def _sources(node: fx.Node, dependencies: Dependencies, tokens: Tokens) -> list[fx.Node]:
    arguments, others = tokens.arguments(node), dependencies.beside_inputs(node)
    return arguments + [source for source in others if source not in arguments] if others else arguments


def _visit(
    sink: fx.Node,
    inside: Collection[fx.Node],
    sources_of: Callable[[fx.Node], list[fx.Node]],
    ordered: dict[fx.Node, None],
) -> None:
    stack = [(sink, iter(sources_of(sink)))]
    entered = {sink}
    while stack:
        node, sources = stack[-1]
        following = next((s for s in sources if s in inside and s not in ordered and s not in entered), None)
        if following is None:
            ordered[node] = None
            stack.pop()
        else:
            entered.add(following)
            stack.append((following, iter(sources_of(following))))
