"""Example inputs for compiling one region on its own: the same shapes with fresh symbols.

A region sees sizes such as ``24*Min(20, s0)`` whose symbol ``s0`` belongs to the whole program. Compiled alone, it needs
symbols that its own inputs bind: every distinct expression that cannot be written with symbols already bound becomes a
fresh one (``24*m`` and ``24*m + 96`` become ``24*t`` and ``24*t + 96`` when ``m`` is an input, ``u`` and ``u + 96`` when not).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv


@dataclass(frozen=True)
class BoundSymbol:
    """Where the value of a fresh symbol is read at run time: an integer argument, or one size of a tensor argument."""

    argument: int
    dim: int | None

    def read(self, args: Sequence[Any]) -> int:
        """The symbol's value in a call."""
        value = args[self.argument]
        return int(value if self.dim is None else value.shape[self.dim])


@dataclass(frozen=True)
class FreshInputs:
    """Fake inputs in a fake mode of their own.

    Attributes:
        values: one a placeholder: fake tensors, symbolic or plain integers.
        symbols: the fresh symbolic integers, in the order of ``bindings``.
        bindings: where each fresh symbol is read at run time.
    """

    mode: FakeTensorMode
    values: tuple[Any, ...]
    symbols: tuple[torch.SymInt, ...]
    bindings: tuple[BoundSymbol, ...]


def fresh_inputs(values: Sequence[Any], hints: Sequence[Any] | None = None) -> FreshInputs:
    """Inputs like ``values`` under fresh symbols.

    Args:
        values: fake tensors and symbolic or plain integers of the program the region was cut from.
        hints: real arguments of a call; their sizes replace the hints that the program was traced with.
    """
    return _Freshener(values, hints).build()


class _Freshener:
    """Old expressions are held with dummy symbols, so that an old ``s0`` is never taken for a fresh ``s0``."""

    def __init__(self, values: Sequence[Any], hints: Sequence[Any] | None) -> None:
        self._values = values
        self._hints = hints
        self._env = ShapeEnv()
        self._mode = FakeTensorMode(shape_env=self._env, allow_non_fake_inputs=True)
        self._dummies: dict[sympy.Symbol, sympy.Dummy] = {}
        self._known: dict[sympy.Expr, sympy.Expr] = {}
        self._bound: list[tuple[torch.SymInt, BoundSymbol]] = []
        self._hint_of: dict[sympy.Symbol, int] = {}

    def build(self) -> FreshInputs:
        places = sorted(self._places(), key=lambda place: (place[2].dim is not None, place[0].count_ops()))
        for expression, hint, bound in places:
            self._bind(expression, hint, bound)
        values = tuple(map(self._renew, self._values))
        return FreshInputs(self._mode, values, tuple(s for s, _ in self._bound), tuple(b for _, b in self._bound))

    def _places(self) -> Iterator[tuple[sympy.Expr, int, BoundSymbol]]:
        for index, value in enumerate(self._values):
            real = None if self._hints is None else self._hints[index]
            if isinstance(value, torch.SymInt):
                yield self._old(value), _hint(value, real), BoundSymbol(index, None)
            elif isinstance(value, torch.Tensor):
                for dim, size in enumerate(value.shape):
                    if isinstance(size, torch.SymInt):
                        seen = _hint(size, None if real is None else real.shape[dim])
                        yield self._old(size), seen, BoundSymbol(index, dim)

    def _bind(self, expression: sympy.Expr, hint: int, bound: BoundSymbol) -> None:
        if not self._rewritten(expression).atoms(sympy.Dummy):
            return
        source = ConstantSource(f"__region_size_{len(self._known)}")
        symbol = self._env.create_symbol(hint, source=source, dynamic_dim=DimDynamic.DYNAMIC)
        self._known[expression] = symbol
        if isinstance(symbol, sympy.Symbol):
            self._hint_of[symbol] = hint
            symint = self._env.create_symintnode(symbol, hint=hint, source=source)
            assert isinstance(symint, torch.SymInt)
            self._bound.append((symint, bound))

    def _old(self, size: torch.SymInt) -> sympy.Expr:
        expression: sympy.Expr = size.node.expr
        for symbol in expression.free_symbols:
            self._dummies.setdefault(symbol, sympy.Dummy(symbol.name, integer=True, positive=True))
        return expression.xreplace(self._dummies)

    def _rewritten(self, expression: sympy.Expr) -> sympy.Expr:
        """``expression`` with every bound expression, largest first, replaced by its fresh symbol."""
        for old in sorted(self._known, key=lambda known: -known.count_ops()):
            expression = expression.subs(old, self._known[old])
        return expression

    def _renew(self, value: Any) -> Any:
        if isinstance(value, torch.SymInt):
            return self._size(value)
        if not isinstance(value, torch.Tensor):
            return value
        sizes, strides = ([self._size(n) for n in numbers] for numbers in (value.shape, value.stride()))
        with self._mode:
            return torch.empty_strided(sizes, strides, dtype=value.dtype, device=value.device)

    def _size(self, size: int | torch.SymInt) -> Any:
        if not isinstance(size, torch.SymInt):
            return size
        expression = self._rewritten(self._old(size))
        if expression.is_number:
            return int(expression)
        return self._env.create_symintnode(expression, hint=int(expression.subs(self._hint_of)))


def _hint(size: torch.SymInt, real: Any) -> int:
    """The size to trace with; sizes known only at run time get one that is neither 0 nor 1."""
    if real is not None:
        return int(real)
    return int(size.node.hint) if size.node.has_hint() else 8
