"""Relations between sizes that hold for all values of the sizes, proved term by term."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import sympy
from torch.fx.experimental.symbolic_shapes import ShapeEnv, statically_known_true
from torch.utils._sympy.functions import FloorDiv

from lightint_compile.passes.ir.fake_values import Size, size_of
from lightint_compile.passes.ir.sizes import at_most

_CASES = 64
"""Combinations of remainders that are looked at one by one."""


def always_holds(condition: sympy.Basic, env: ShapeEnv) -> bool:
    """Whether an inequality of polynomials in sizes, and in quotients of sizes by numbers, holds for all sizes.

    A size that is divided by a number is that many times its quotient and a remainder, every value its smallest and
    something more: then no term may take anything away. ``False`` where that shows nothing.
    """
    if isinstance(condition, (sympy.Lt, sympy.Le)):
        more, least = condition.rhs - condition.lhs, int(isinstance(condition, sympy.Lt))
    elif isinstance(condition, (sympy.Gt, sympy.Ge)):
        more, least = condition.lhs - condition.rhs, int(isinstance(condition, sympy.Gt))
    else:
        return False
    cases = list(itertools.islice(_remainders(more, env), _CASES + 1))
    return len(cases) <= _CASES and all(_is_at_least(*case, least) for case in cases)


def is_never_negative(size: Size, env: ShapeEnv | None) -> bool:
    """Whether a size is at least 0 by its bounds, or by what the capture asserts; nothing is guarded."""
    if isinstance(size, int) or env is None:
        return isinstance(size, int) and size >= 0
    least = env.bound_sympy(size).lower
    if least.is_number and least >= 0:
        return True
    return bool(statically_known_true(env.create_symboolnode(sympy.Ge(size, 0))))


@dataclass(frozen=True)
class SizeOrder:
    """Which of two sizes is the larger, where that is certain for all calls that the capture serves."""

    env: ShapeEnv | None

    def at_most(self, left: Size, right: Size) -> bool:
        """Whether ``left`` is certainly no larger than ``right``."""
        return at_most(left, right) or is_never_negative(size_of(right - left), self.env)

    def is_less(self, left: Size, right: Size) -> bool:
        """Whether ``left`` is certainly smaller than ``right``."""
        if isinstance(left, int) and isinstance(right, int):
            return left < right
        more = sympy.expand(right - left)
        return bool(more.is_positive) or is_never_negative(size_of(more - 1), self.env)

    def least(self, left: Size, right: Size) -> Size | None:
        """The smaller one; ``None`` where that cannot be told."""
        return left if self.at_most(left, right) else right if self.at_most(right, left) else None

    def most(self, left: Size, right: Size) -> Size | None:
        """The larger one; ``None`` where that cannot be told."""
        return right if self.at_most(left, right) else left if self.at_most(right, left) else None


def _remainders(more: sympy.Expr, env: ShapeEnv) -> Iterator[tuple[sympy.Expr, dict[sympy.Symbol, int]]]:
    """``more`` without divisions, once for each combination of remainders, with the smallest value of every symbol."""
    divided: dict[sympy.Symbol, set[int]] = {}
    for quotient in more.atoms(FloorDiv):
        base, by = quotient.args
        if base.is_Symbol and by.is_Integer and by > 1:
            divided.setdefault(base, set()).add(int(by))
    smallest = {symbol: _lower(symbol, env) for symbol in more.free_symbols}
    wholes = {symbol: math.lcm(*by) for symbol, by in divided.items()}
    counts = {symbol: sympy.Dummy(f"{symbol.name}_q", integer=True, nonnegative=True) for symbol in wholes}
    for rests in itertools.product(*(range(whole) for whole in wholes.values())):
        apart = dict(zip(wholes, rests, strict=True))
        parts = {
            FloorDiv(symbol, by): wholes[symbol] // by * counts[symbol] + apart[symbol] // by
            for symbol, numbers in divided.items()
            for by in numbers
        }
        values = {symbol: wholes[symbol] * counts[symbol] + apart[symbol] for symbol in wholes}
        least = {counts[symbol]: max(-(-(smallest[symbol] - apart[symbol]) // wholes[symbol]), 0) for symbol in wholes}
        yield more.xreplace(parts).xreplace(values), {**smallest, **least}


def _lower(symbol: sympy.Symbol, env: ShapeEnv) -> int:
    least = env.bound_sympy(symbol).lower
    return int(least) if least.is_Integer else 0


def _is_at_least(more: sympy.Expr, smallest: dict[sympy.Symbol, int], least: int) -> bool:
    """Whether ``more`` is at least that, by the signs of its terms in what symbols exceed their smallest values by."""
    symbols = sorted(more.free_symbols, key=str)
    if not symbols:
        return bool(more.is_number and more >= least)
    if not more.is_polynomial(*symbols) or any(symbol not in smallest for symbol in symbols):
        return False
    moved = sympy.Poly(more.xreplace({symbol: symbol + smallest[symbol] for symbol in symbols}), *symbols)
    terms = dict(moved.terms())
    constant = terms.pop((0,) * len(symbols), sympy.Integer(0))
    return bool(constant >= least and all(value >= 0 for value in terms.values()))
