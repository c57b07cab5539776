"""Whatever the sizes are, numbers read from some of them give all of them."""

from __future__ import annotations

import random

import sympy

from lightint_compile.lowering.size_elimination import Elimination

SYMBOLS = sympy.symbols("s0 s1 s2 s3", integer=True, positive=True)


def _drawn(draw: random.Random) -> sympy.Expr:
    """A size as programs have them: sums, multiples, products and parts of symbols."""
    a, b = draw.choice(SYMBOLS), draw.choice(SYMBOLS)
    shape = draw.choice(["symbol", "multiple", "sum", "difference", "product", "part", "square", "long"])
    one = {
        "symbol": a,
        "multiple": draw.randint(2, 64) * a + draw.randint(-3, 9),
        "sum": draw.choice([1, 2, 64]) * (a + b) + draw.randint(0, 5),
        "difference": a - b + draw.randint(0, 5),
        "product": draw.randint(1, 3) * a * b,
        "part": sympy.floor(a / 2) + draw.randint(0, 2) * b,
        "square": a * a - b,
        "long": 2 * a * b + 3 * draw.choice(SYMBOLS) - a + 7,
    }
    return sympy.sympify(one[shape])


def test_all_sizes_follow_from_the_numbers_that_are_read() -> None:
    for seed in range(150):
        draw = random.Random(seed)
        expressions = [_drawn(draw) for _ in range(draw.randint(1, 6))]
        expressions = [expression for expression in expressions if expression.free_symbols]
        elimination = Elimination()
        sizes = [elimination.polynomial(expression) for expression in expressions]
        readings = []
        for index, size in enumerate(sizes):
            told = elimination.reduced(size)
            if not elimination.is_known(told):
                readings.append((index, elimination.add(told)))
        assert len(readings) <= len(sizes)
        for _ in range(3):
            values = {symbol: draw.randint(2, 40) for symbol in SYMBOLS}
            seen = [int(expression.subs(values)) for expression in expressions]
            numbers = {}
            for index, reading in readings:
                number, rest = divmod(seen[index] - reading.offset, reading.factor)
                assert rest == 0, (seed, expressions)
                numbers[reading.number] = number
            told = [elimination.reduced(size) for size in sizes]
            assert all(map(elimination.is_known, told)), (seed, expressions)
            assert [size.subs(numbers) for size in told] == seen, (seed, expressions)


def test_what_is_related_takes_one_number() -> None:
    a, b, _, _ = SYMBOLS
    elimination = Elimination()
    sizes = [elimination.polynomial(size) for size in (a, a + b, 64 * a + 64 * b + 3, b, 5 * b - a)]
    added = 0
    for size in sizes:
        told = elimination.reduced(size)
        if not elimination.is_known(told):
            elimination.add(told)
            added += 1
    assert added == 2, "the sum and one of its parts give the other part"
