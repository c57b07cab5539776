"""Conditions on sizes: what is shown holds for every size that was tried; what does not hold is never shown."""

from __future__ import annotations

import itertools
import random

import pytest
import sympy
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._sympy.functions import FloorDiv

from lightint_compile.passes.ir.size_conditions import always_holds


def symbols(*names: str) -> tuple[ShapeEnv, list[sympy.Symbol]]:
    env = ShapeEnv()
    made = [env.create_symbol(7, ConstantSource(name), dynamic_dim=DimDynamic.DYNAMIC) for name in names]
    for symbol in made:
        env.constrain_symbol_range(symbol, compiler_min=2, compiler_max=1 << 40)
    return env, made


def test_strides_of_a_volume_are_in_order_whatever_its_sizes() -> None:
    env, (frames, height, width) = symbols("frames", "height", "width")
    volume = 16 * FloorDiv(height, 2) * FloorDiv(width, 2) * frames
    assert always_holds(width < volume, env) and always_holds(volume > height, env)
    assert always_holds(FloorDiv(width, 2) <= width, env) and not always_holds(width <= FloorDiv(width, 2) * 2, env)
    assert not always_holds(frames * 2 < width, env) and not always_holds(sympy.Eq(frames, width), env)


@pytest.mark.parametrize("seed", range(60))
def test_nothing_is_shown_that_fails_for_some_sizes(seed: int) -> None:
    draw = random.Random(seed)
    env, made = symbols("a", "b")
    atoms = [*made, *(FloorDiv(symbol, k) for symbol in made for k in (2, 3))]

    def side() -> sympy.Expr:
        terms = [draw.randint(1, 9) * sympy.prod(draw.choices(atoms, k=draw.randint(1, 2))) for _ in range(2)]
        return sum(terms, sympy.Integer(draw.randint(-3, 3)))

    relation = draw.choice([sympy.Lt, sympy.Le, sympy.Gt, sympy.Ge])(side(), side())
    if relation in (sympy.true, sympy.false) or not always_holds(relation, env):
        return
    for values in itertools.product(range(2, 14), repeat=2):
        assert bool(relation.xreplace(dict(zip(made, map(sympy.Integer, values), strict=True)))), (relation, values)


def test_most_true_orders_are_shown() -> None:
    env, (a, b) = symbols("a", "b")
    true = [a < 4 * a * b, FloorDiv(a, 2) * b < a * b, a + b >= 4, a * b + 1 > FloorDiv(a, 3) * 3]
    assert all(always_holds(each, env) for each in true)
