"""Patterns as Python values.

>>> x, dim = Var("x"), Number("dim")
>>> softmax = Either(
...     "softmax",
...     fused=op(aten.softmax.int, x, dim),
...     spelled=op(aten.div.Tensor, op(aten.exp.default, x), op(aten.sum.dim_IntList, op(aten.exp.default, x), dim)),
... )

A variable that occurs twice must be bound to the same value. ``solve`` yields every way to match, so that a commutative
operation or an alternative is taken back when the rest does not fit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.passes.ir.matching.result import Failure, MatchResult
from lightint_compile.passes.ir.op_arguments import arguments

aten = torch.ops.aten


@dataclass(frozen=True)
class Trial:
    """A partial match; ``best`` is shared by every trial of one attempt and holds the furthest failure."""

    bindings: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    nodes: tuple[fx.Node, ...] = ()
    best: list[MatchResult] = field(default_factory=list)

    def bind(self, name: str, value: Any) -> Trial | None:
        """This trial with one more binding; ``None`` when the name is already bound to something else."""
        if name in self.bindings:
            known = self.bindings[name]
            return self if known is value or (not isinstance(value, fx.Node) and known == value) else None
        return replace(self, bindings={**self.bindings, name: value})

    def visit(self, node: fx.Node) -> Trial:
        """This trial with one more matched node."""
        return self if node in self.nodes else replace(self, nodes=(*self.nodes, node))

    def miss(self, value: Any, reason: Callable[[], str]) -> None:
        """Remember this failure if no trial of the attempt got further."""
        if not self.best or len(self.nodes) > len(self.best[0].nodes):
            node = value if isinstance(value, fx.Node) else None
            failure = Failure("pattern", node, reason)
            self.best[:] = [MatchResult(self.bindings, self.tags, self.nodes, failure)]


class Pattern(ABC):
    """Something an argument of a node can be compared with."""

    @abstractmethod
    def solve(self, value: Any, trial: Trial) -> Iterator[Trial]:
        """Every way in which ``value`` fits, as extended trials."""


@dataclass(frozen=True)
class Var(Pattern):
    """Fits a node (a tensor of the graph) and names it."""

    name: str

    def solve(self, value: Any, trial: Trial) -> Iterator[Trial]:
        """See :meth:`Pattern.solve`."""
        bound = trial.bind(self.name, value) if isinstance(value, fx.Node) else None
        if bound is not None:
            yield bound
        else:
            trial.miss(value, lambda: f"{value} is not the same value as {self.name}")


@dataclass(frozen=True)
class Number(Pattern):
    """Fits a number known at compile time: a Python one, a list of one, or a node with one constant everywhere."""

    name: str
    check: Callable[[float], bool] = lambda number: True

    def solve(self, value: Any, trial: Trial) -> Iterator[Trial]:
        """See :meth:`Pattern.solve`."""
        number = number_of(value)
        bound = trial.bind(self.name, number) if number is not None and self.check(number) else None
        if bound is not None:
            yield bound
        else:
            trial.miss(value, lambda: f"{value} is not the constant wanted for {self.name}")


@dataclass(frozen=True)
class Op(Pattern):
    """Fits a call of one of ``targets`` whose first arguments, in schema order, fit ``operands``."""

    targets: tuple[Any, ...]
    operands: tuple[Pattern, ...]
    commutative: bool = False

    def solve(self, value: Any, trial: Trial) -> Iterator[Trial]:
        """See :meth:`Pattern.solve`."""
        if not isinstance(value, fx.Node) or value.op != "call_function" or value.target not in self.targets:
            trial.miss(value, lambda: f"{value} is not a call of {' or '.join(map(str, self.targets))}")
            return
        given = list(arguments(value).values())[: len(self.operands)]
        if len(given) == len(self.operands):
            for operands in self._orders():
                yield from _solve_all(operands, given, trial.visit(value))

    def _orders(self) -> Iterator[tuple[Pattern, ...]]:
        yield self.operands
        if self.commutative:
            yield (self.operands[1], self.operands[0], *self.operands[2:])


@dataclass(frozen=True)
class Either(Pattern):
    """Fits one of several forms; the tags say under ``name`` which one."""

    name: str
    alternatives: Mapping[str, Pattern]

    def __init__(self, name: str, **alternatives: Pattern) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "alternatives", alternatives)

    def solve(self, value: Any, trial: Trial) -> Iterator[Trial]:
        """See :meth:`Pattern.solve`."""
        for tag, pattern in self.alternatives.items():
            yield from pattern.solve(value, replace(trial, tags={**trial.tags, self.name: tag}))


def op(targets: Any, *operands: Pattern, commutative: bool = False) -> Op:
    """An :class:`Op`; ``targets`` is one overload or a tuple of them."""
    return Op(targets if isinstance(targets, tuple) else (targets,), operands, commutative)


def _solve_all(patterns: tuple[Pattern, ...], values: list[Any], trial: Trial) -> Iterator[Trial]:
    if not patterns:
        yield trial
        return
    for extended in patterns[0].solve(values[0], trial):
        yield from _solve_all(patterns[1:], values[1:], extended)


#: Calls that make a tensor with one value everywhere, and where that value stands among the arguments.
_UNIFORM = {
    aten.full.default: 1,
    aten.full_like.default: 1,
    aten.new_full.default: 2,
    aten.scalar_tensor.default: 0,
}
_NAMED = {
    **dict.fromkeys((aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default), 0.0),
    **dict.fromkeys((aten.ones.default, aten.ones_like.default, aten.new_ones.default), 1.0),
}
_SAME_VALUE = (aten.expand.default, aten.view.default, aten.reshape.default, aten.unsqueeze.default)


def number_of(value: Any) -> float | None:
    """The number that ``value`` is everywhere, known without running anything; ``None`` when there is none.

    A constant kept as a graph attribute counts when it has one element.
    """
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, (int, float)):
        return value
    if not isinstance(value, fx.Node):
        return None
    if value.op == "get_attr":
        return _attribute(value)
    if value.target in _UNIFORM:
        return number_of(value.args[_UNIFORM[value.target]])
    if value.target in _NAMED:
        return _NAMED[value.target]
    return number_of(value.args[0]) if value.target in _SAME_VALUE else None


def _attribute(node: fx.Node) -> float | None:
    constant = getattr(node.graph.owning_module, str(node.target), None)
    if not isinstance(constant, torch.Tensor) or constant.numel() != 1 or type(constant) is not torch.Tensor:
        return None
    number: float = constant.item()
    return number
