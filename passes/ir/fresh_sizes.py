"""A computed size becomes a symbol: what was ``Min(20, s)`` becomes a fresh symbol that a decision sets.

Fake values downstream are renamed, not recomputed: forty thousand nodes take a second, and no guard is added.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, cast

import sympy
import torch
import torch.fx as fx
import torch.utils._pytree as pytree
from torch._dynamo.source import ConstantSource
from torch._guards import Source
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, statically_known_true

from lightint_compile.errors import PassError
from lightint_compile.passes.ir.fake_values import Size, another, described
from lightint_compile.passes.ir.program import Program, fake_mode_of
from lightint_compile.passes.ir.size_conditions import always_holds
from lightint_compile.passes.ir.sizes import quotient
from lightint_compile.torch_compat import shape_env_of

Renames: TypeAlias = Mapping[sympy.Expr, torch.SymInt]
"""New sizes by the sizes they take the place of."""


_PREFIX = "__decided_"


def fresh_size(program: Program, name: str, most: int, typical: int, least: int = 2) -> torch.SymInt:
    """A symbol that no size of the program is related to, from ``least`` to ``most``; its hint is ``typical``."""
    env = fake_mode_of(program.graph.nodes).shape_env
    assert env is not None
    source = ConstantSource(_PREFIX + name)
    symbol = env.create_symbol(
        typical, source=source, dynamic_dim=DimDynamic.DYNAMIC, do_not_specialize_zero_one=least < 2
    )
    env.constrain_symbol_range(symbol, compiler_min=least, compiler_max=most)
    size = env.create_symintnode(symbol, hint=typical, source=source)
    assert isinstance(size, torch.SymInt)
    return size


def bounds(size: torch.SymInt) -> tuple[int | None, int | None]:
    """The smallest and the largest value of a size under which the capture holds; ``None`` where there is no bound."""
    found = shape_env_of(size).bound_sympy(size.node.expr)
    lower, upper = (int(bound) if bound.is_Integer else None for bound in (found.lower, found.upper))
    return lower, upper


def forget_guards(program: Program) -> None:
    """Drop what tracing assumed of decided sizes, such as that they differ from one another.

    Guards are for inputs: Dynamo could not look a decided size up in a call, and none of them decides which code runs.
    """
    env = fake_mode_of(program.graph.nodes).shape_env
    if env is None:
        return
    decided = {symbol for symbol, sources in env.var_to_sources.items() if any(map(_is_decided, sources))}
    env.guards[:] = [guard for guard in env.guards if not decided & guard.expr.free_symbols]


def is_decided(size: Size, program: Program) -> bool:
    """Whether a size depends on one that was made by :func:`fresh_size`."""
    env = fake_mode_of(program.graph.nodes).shape_env
    if env is None or isinstance(size, int):
        return False
    return any(_is_decided(source) for symbol in size.free_symbols for source in env.var_to_sources.get(symbol, ()))


def _is_decided(source: Source) -> bool:
    return isinstance(source, ConstantSource) and source.source_name.startswith(_PREFIX)


def check_unconditional(renames: Renames, node: fx.Node) -> None:
    """Raise :class:`PassError` when the capture holds only under a condition that not every new size meets.

    What is decided is never more than what was there, so upper limits keep holding.
    """
    condition = _relied_on(renames)
    if condition:
        raise PassError(
            "the graph was captured under a condition on the number of context frames",
            where=node.name,
            why=f"{condition} need not hold for what is decided",
        )


def _relied_on(renames: Renames) -> str:
    env = shape_env_of(next(iter(renames.values())))
    expressions = {old: new.node.expr for old, new in renames.items()}
    for guard in env.guards:
        condition = env.replace(guard.expr)
        if not condition.has(*expressions) or any(_holds_for_fewer(condition, old) for old in expressions):
            continue
        renamed = condition.xreplace(expressions).replace(
            lambda part: _leaves_all(part, env), lambda part: part.args[0]
        )
        shown = _is_multiple(renamed, env) or always_holds(renamed, env)
        if not shown and not statically_known_true(env.create_symboolnode(renamed)):
            return str(guard.expr)
    return ""


def _is_multiple(condition: sympy.Basic, env: ShapeEnv) -> bool:
    """Whether ``condition`` is ``k x != x`` with a ``k`` above one."""
    if not isinstance(condition, sympy.Ne) or not condition.rhs.is_Symbol:
        return False
    return _is_several_times(condition.lhs, condition.rhs, env)


def _leaves_all(part: sympy.Basic, env: ShapeEnv) -> bool:
    """Whether ``part`` is ``Mod(x, k x)`` with a ``k`` above one, which is ``x``; ``x`` a symbol or 1."""
    if part.func.__name__ not in ("Mod", "PythonMod") or not (part.args[0].is_Symbol or part.args[0] == 1):
        return False
    return _is_several_times(part.args[1], part.args[0], env)


def _is_several_times(whole: sympy.Expr, part: sympy.Expr, env: ShapeEnv) -> bool:
    """Whether ``whole`` is a whole multiple of ``part``, and more than it."""
    times = quotient(whole, part)
    least = None if times is None else env.bound_sympy(sympy.sympify(times)).lower
    return bool(least is not None and least.is_Integer and least >= 2)


def _holds_for_fewer(condition: sympy.Basic, old: sympy.Expr) -> bool:
    """Whether ``condition`` holds for fewer than ``old``: an upper limit linear in it, or a relation it cancels in."""
    if not isinstance(condition, (sympy.Eq, sympy.Ne, sympy.Le, sympy.Lt)):
        return False
    size = sympy.Dummy("size", positive=True)
    left, right = (_factored(side.xreplace({old: size}), size) for side in (condition.lhs, condition.rhs))
    if not any(sympy.expand(side / size).has(size) for side in (left, right)):
        return True
    slope = sympy.diff(right - left, size)
    upper = isinstance(condition, (sympy.Le, sympy.Lt)) and slope.is_negative
    return bool(upper and not slope.has(size))


def _factored(expression: sympy.Expr, size: sympy.Symbol) -> sympy.Expr:
    """``Mod(size, size * k)`` as ``size * Mod(1, k)``."""

    def shares(part: sympy.Expr) -> bool:
        return part.func.__name__ in ("Mod", "PythonMod") and not any(
            sympy.expand(each / size).has(size) for each in part.args
        )

    return expression.replace(shares, lambda part: size * part.func(*(sympy.expand(each / size) for each in part.args)))


class Resize:
    """Renames sizes in the fake values of everything that depends on the nodes that make them."""

    def __init__(self, program: Program, renames: Renames) -> None:
        self._program = program
        self._mode = fake_mode_of(program.graph.nodes)
        self._old = tuple(renames)
        self._new = {old: new.node.expr for old, new in renames.items()}
        self._sizes: dict[sympy.Expr, torch.SymInt] = {}
        self._made: dict[Any, torch.Tensor] = {}

    def below(self, sources: Iterable[fx.Node]) -> int:
        """Rename below ``sources``, whose values are new already; how many nodes were renamed.

        Raises:
            PassError: a renamed value meets one whose size is still the old: they may differ from now on.
        """
        reached = set(sources)
        renamed = 0
        for node in self._program.graph.nodes:
            if node in reached or node.op == "output" or not any(source in reached for source in node.all_input_nodes):
                continue
            reached.add(node)
            if self._mentions(node.meta.get("val")):
                self._check_sources(node, reached)
                node.meta["val"] = self.renamed(node.meta["val"])
                renamed += 1
        return renamed

    def _check_sources(self, node: fx.Node, reached: set[fx.Node]) -> None:
        for source in node.all_input_nodes:
            if source not in reached and self._mentions(source.meta.get("val")):
                raise PassError(
                    f"{source.name} has as many frames as the context without being read with its frame numbers",
                    where=node.name,
                    why=f"both are {self._old[0]} long today, and only one of them follows the decision",
                )

    def _mentions(self, value: Any) -> bool:
        return any(
            isinstance(size, torch.SymInt) and size.node.expr.has(*self._old)
            for leaf in pytree.tree_leaves(value)
            for size in (leaf.shape if isinstance(leaf, torch.Tensor) else (leaf,))
        )

    def renamed(self, value: Any) -> Any:
        """A fake value, or a tuple of them, with the size renamed."""
        return pytree.tree_map_only((torch.Tensor, torch.SymInt), self._leaf, value)

    def _leaf(self, value: torch.Tensor | torch.SymInt) -> Any:
        if isinstance(value, torch.SymInt):
            return self._size(value)
        key = described(value)
        if key not in self._made:
            shape, stride = ([self._size(size) for size in sizes] for sizes in (value.shape, value.stride()))
            with self._mode:
                self._made[key] = torch.empty_strided(shape, stride, dtype=value.dtype, device=value.device)
        return another(self._made[key])

    def _size(self, size: int | torch.SymInt) -> Any:
        if not isinstance(size, torch.SymInt) or not size.node.expr.has(*self._old):
            return size
        expression = size.node.expr.xreplace(self._new)
        if expression not in self._sizes:
            self._sizes[expression] = cast(torch.SymInt, shape_env_of(size).create_symintnode(expression, hint=None))
        return self._sizes[expression]
