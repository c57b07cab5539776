"""Sizes as polynomials, and the fewest numbers that determine all of them.

A region sees ``s0 + s1`` and ``64*s0 + 64*s1 + 3`` but neither symbol alone, or ``h*w`` and never ``h``. A term that no
single size determines is taken as one number, and one of its terms is eliminated from all other sizes: Gaussian
elimination over monomials.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import sympy
from torch.utils._sympy.functions import Max


@dataclass(frozen=True)
class Reading:
    """A new number is ``(size - offset) / factor``."""

    number: sympy.Dummy
    factor: int
    offset: int


class Elimination:
    """Numbers that sizes are polynomials in, found one after the other."""

    def __init__(self) -> None:
        self._atoms: dict[sympy.Expr, sympy.Dummy] = {}
        self._alone: dict[sympy.Expr, sympy.Expr] = {}
        self._pivots: dict[sympy.Expr, sympy.Expr] = {}
        self._whole: list[tuple[sympy.Expr, sympy.Dummy]] = []
        self._numbers: set[sympy.Dummy] = set()

    def polynomial(self, size: sympy.Expr) -> sympy.Expr:
        """``size`` over atoms: everything below sums and products, such as ``Min(20, s0)``, is one."""
        if size.is_number:
            return size
        if size.is_Add or size.is_Mul:
            return size.func(*map(self.polynomial, size.args))
        if isinstance(size, Max) and len(size.args) == 2 and size.args[0] == 1:
            return self.polynomial(size.args[1])  # contiguous strides are written so
        return self._atoms.setdefault(size, sympy.Dummy(f"atom{len(self._atoms)}", integer=True))

    def atoms(self) -> list[sympy.Dummy]:
        """Every atom seen so far."""
        return list(self._atoms.values())

    def reduced(self, polynomial: sympy.Expr) -> sympy.Expr:
        """``polynomial`` over numbers; terms that no number determines stay as they are."""
        polynomial = self._without_pivots(polynomial)
        for whole, number in self._whole:
            whole = self._without_pivots(whole)
            coefficients, of_whole = self._unknown(polynomial), self._unknown(whole)
            if coefficients.keys() != of_whole.keys() or not coefficients:
                continue
            times = coefficients[next(iter(coefficients))] / of_whole[next(iter(coefficients))]
            rest = sympy.expand(polynomial - times * whole)
            if times.is_Integer and self.is_known(rest):
                return rest + times * number
        return polynomial

    def _without_pivots(self, polynomial: sympy.Expr) -> sympy.Expr:
        polynomial = sympy.expand(polynomial.xreplace(self._alone))
        while True:
            terms = [(coefficient, *self._split(term)) for coefficient, term in _terms(polynomial)]
            if not any(unknown in self._pivots for _, _, unknown in terms):
                return polynomial
            replaced = (c * known * self._pivots.get(unknown, unknown) for c, known, unknown in terms)
            polynomial = sympy.expand(sympy.Add(*replaced))

    def _unknown(self, polynomial: sympy.Expr) -> dict[sympy.Expr, sympy.Integer]:
        """The coefficients of terms that hold anything but numbers."""
        return {term: sympy.Integer(c) for c, term in _terms(polynomial) if not self.is_known(term)}

    def is_known(self, polynomial: sympy.Expr) -> bool:
        """Whether a reduced polynomial is one over numbers alone."""
        return bool(polynomial.free_symbols <= self._numbers)

    def reads(self, polynomial: sympy.Expr, atom: sympy.Dummy) -> bool:
        """Whether a size gives ``atom`` away by itself: ``factor * atom + offset``."""
        return polynomial.free_symbols == {atom} and sympy.degree(polynomial, atom) == 1

    def add(self, polynomial: sympy.Expr) -> Reading:
        """A new number for a reduced polynomial that is not known: it, but for its constant, over its common factor."""
        terms = dict((term, coefficient) for coefficient, term in _terms(polynomial))
        offset = terms.pop(sympy.S.One, 0)
        factor = math.gcd(*terms.values())
        if all(coefficient < 0 for coefficient in terms.values()):
            factor = -factor
        number = sympy.Dummy(f"number{len(self._numbers)}", integer=True)
        self._numbers.add(number)
        whole = sympy.Add(*(coefficient // factor * term for term, coefficient in terms.items()))
        pivot = self._pivot(terms, factor)
        if whole.is_Symbol and not self._pivots and not self._whole:
            self._alone[whole] = number
        elif pivot is None:
            self._whole.append((whole, number))
        else:
            self._pivots[pivot] = sympy.expand(
                (number - (whole - terms[pivot] // factor * pivot)) * factor / terms[pivot]
            )
        return Reading(number, factor, offset)

    def _pivot(self, terms: dict[sympy.Expr, int], factor: int) -> sympy.Expr | None:
        """The plainest term that has no factor of its own, and of which no other is a multiple by a number."""
        unknown = [self._split(term)[1] for term in terms]
        found = [t for t, c in terms.items() if abs(c) == abs(factor) and t in unknown and unknown.count(t) == 1]
        return min(found, key=lambda term: (sympy.total_degree(term), term.sort_key()), default=None)

    def _split(self, term: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
        """The part of a monomial over numbers, and the part over atoms."""
        known, unknown = term.as_independent(*(term.free_symbols - self._numbers), as_Add=False)
        return known, unknown


def _terms(polynomial: sympy.Expr) -> Iterator[tuple[int, sympy.Expr]]:
    """Integer coefficients and monomials; that of the constant is 1."""
    for term in sympy.Add.make_args(sympy.expand(polynomial)):
        coefficient, monomial = term.as_coeff_Mul()
        yield int(coefficient), monomial
