"""Example inputs for compiling one region on its own: the same shapes with fresh symbols.

A region sees sizes such as ``24*Min(20, s0)`` whose symbol ``s0`` belongs to the whole program. Compiled alone, it
needs symbols that its own inputs bind. Every part of a size that is not a sum or product, ``Min(20, s0)`` here, becomes
a fresh symbol ``n``: sizes become polynomials in fresh symbols (``24*n``, ``24*n + 96``), and the value of each is
found at run time from a size that is linear in it. Every symbol that is no integer argument of the region already is
handed to it as one, before the rest, as Dynamo does: Inductor's caches write guards in terms of integer arguments only.
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
from torch.utils._sympy.functions import Max

from lightint_compile.errors import CaptureError


@dataclass(frozen=True)
class BoundSymbol:
    """Where the value of a fresh symbol is read at run time: ``(size - offset) / factor``.

    Attributes:
        argument: position among the region's arguments.
        dim: the dimension of a tensor argument; ``None`` for an integer argument.
        factor, offset: the size is ``factor * symbol + offset``.
        of_stride: the stride of that dimension is read, not its size.
    """

    argument: int
    dim: int | None
    factor: int = 1
    offset: int = 0
    of_stride: bool = False

    def read(self, args: Sequence[Any]) -> int:
        """The symbol's value in a call."""
        value = args[self.argument]
        if self.dim is not None:
            value = value.stride(self.dim) if self.of_stride else value.shape[self.dim]
        return (int(value) - self.offset) // self.factor

    @property
    def is_plain(self) -> bool:
        """Whether the size is the symbol itself."""
        return self.factor == 1 and self.offset == 0

    @property
    def is_argument(self) -> bool:
        """Whether the symbol is an integer argument of the region."""
        return self.is_plain and self.dim is None


@dataclass(frozen=True)
class FreshInputs:
    """Fake inputs in a fake mode of their own.

    Attributes:
        values: one a placeholder: fake tensors, symbolic or plain integers.
        symbols: the fresh symbolic integers, in the order of ``bindings``.
        bindings: where each fresh symbol is read at run time.
        extra: positions in ``symbols`` of those that the region gets as integer arguments of their own, before
        ``values``.
    """

    mode: FakeTensorMode
    values: tuple[Any, ...]
    symbols: tuple[torch.SymInt, ...]
    bindings: tuple[BoundSymbol, ...]
    extra: tuple[int, ...]


def fresh_inputs(values: Sequence[Any], hints: Sequence[Any] | None = None) -> FreshInputs:
    """Inputs like ``values`` under fresh symbols.

    Args:
        values: fake tensors and symbolic or plain integers of the program the region was cut from.
        hints: real arguments of a call; their sizes replace the hints that the program was traced with.

    Raises:
        CaptureError: a symbol whose value no size gives away.
    """
    return _Freshener(values, hints).build()


@dataclass(frozen=True)
class _Place:
    """One symbolic size among the inputs: its polynomial in the atoms, its value in the example, where it stands."""

    polynomial: sympy.Expr
    hint: int
    argument: int
    dim: int | None
    of_stride: bool = False


class _Freshener:
    def __init__(self, values: Sequence[Any], hints: Sequence[Any] | None) -> None:
        self._values = values
        self._hints = hints
        self._env = ShapeEnv()
        self._mode = FakeTensorMode(shape_env=self._env, allow_non_fake_inputs=True)
        self._atoms: dict[sympy.Expr, sympy.Dummy] = {}
        self._fresh: dict[sympy.Dummy, sympy.Expr] = {}
        self._hint_of: dict[sympy.Dummy, int] = {}
        self._unread: set[sympy.Dummy] = set()
        self._products: dict[sympy.Expr, sympy.Dummy] = {}

    def build(self) -> FreshInputs:
        """Find the atoms, bind each, and make the inputs."""
        places = [*self._places(), *self._stride_places()]
        self._unread = {atom for atom in self._atoms.values() if all(_linear(place, atom) is None for place in places)}
        if self._unread:  # height and width that are only ever seen as tokens: their product is a size of its own
            places = [*self._places(), *self._stride_places()]
        atoms = [atom for atom in self._atoms.values() if atom not in self._unread]
        bound = [self._bind(atom, places) for atom in (*atoms, *self._products.values())]
        dynamic = [(symint, place) for symint, place in bound if isinstance(symint, torch.SymInt)]
        values = tuple(map(self._renew, self._values))
        extra = tuple(index for index, (_, place) in enumerate(dynamic) if not place.is_argument)
        return FreshInputs(self._mode, values, tuple(s for s, _ in dynamic), tuple(p for _, p in dynamic), extra)

    def _places(self) -> Iterator[_Place]:
        for index, value in enumerate(self._values):
            real = None if self._hints is None else self._hints[index]
            if isinstance(value, torch.SymInt):
                yield _Place(self._polynomial(value), _hint(value, real), index, None)
            elif isinstance(value, torch.Tensor):
                for dim, size in enumerate(value.shape):
                    if isinstance(size, torch.SymInt):
                        seen = _hint(size, None if real is None else real.shape[dim])
                        yield _Place(self._polynomial(size), seen, index, dim)

    def _stride_places(self) -> Iterator[_Place]:
        """Strides, for a view whose base had a size that the view's own sizes no longer show."""
        for index, value in enumerate(self._values):
            for dim, stride in _addressing(value):
                if isinstance(stride, torch.SymInt):
                    real = None if self._hints is None else self._hints[index].stride(dim)
                    yield _Place(self._polynomial(stride), _hint(stride, real), index, dim, of_stride=True)

    def _polynomial(self, size: int | torch.SymInt) -> sympy.Expr:
        if not isinstance(size, torch.SymInt):
            return sympy.Integer(size)
        polynomial = self._in_atoms(size.node.expr)
        return self._with_products(polynomial) if polynomial.free_symbols & self._unread else polynomial

    def _with_products(self, polynomial: sympy.Expr) -> sympy.Expr:
        """``polynomial`` with each product of atoms that no size gives away by themselves as one atom."""
        terms = []
        for term in sympy.Add.make_args(sympy.expand(polynomial)):
            factors = sympy.Mul.make_args(term)
            unread = sympy.Mul(*(factor for factor in factors if factor.free_symbols & self._unread))
            rest = sympy.Mul(*(factor for factor in factors if not factor.free_symbols & self._unread))
            if unread != 1 and unread not in self._products:
                self._products[unread] = sympy.Dummy(f"product{len(self._products)}", integer=True, positive=True)
            terms.append(rest * self._products.get(unread, unread))
        return sympy.Add(*terms)

    def _in_atoms(self, expression: sympy.Expr) -> sympy.Expr:
        """``expression`` with everything below sums and products replaced by one dummy each."""
        if expression.is_number:
            return expression
        if expression.is_Add or expression.is_Mul:
            return expression.func(*map(self._in_atoms, expression.args))
        if isinstance(expression, Max) and len(expression.args) == 2 and expression.args[0] == 1:
            # Contiguous strides are written Max(1, size); a fresh symbol is never 0.
            return self._in_atoms(expression.args[1])
        if expression not in self._atoms:
            self._atoms[expression] = sympy.Dummy(f"size{len(self._atoms)}", integer=True, positive=True)
        return self._atoms[expression]

    def _bind(self, atom: sympy.Dummy, places: Sequence[_Place]) -> tuple[Any, BoundSymbol]:
        """A fresh symbol for ``atom``, read from the plainest size that is linear in it alone."""
        found = [(bound, place) for place in places if (bound := _linear(place, atom)) is not None]
        if not found:
            sizes = ", ".join(sorted({str(place.polynomial) for place in places}))
            raise CaptureError(
                "a size inside a region cannot be told from the sizes of its inputs", why=f"they are {sizes}"
            )
        bound, place = min(found, key=lambda pair: (pair[0].of_stride, not pair[0].is_plain, pair[0].dim is not None))
        hint = (place.hint - bound.offset) // bound.factor
        source = ConstantSource(f"__region_size_{len(self._fresh)}")
        symbol = self._env.create_symbol(hint, source=source, dynamic_dim=DimDynamic.DYNAMIC)
        self._fresh[atom], self._hint_of[atom] = symbol, hint
        return self._env.create_symintnode(symbol, hint=hint, source=source), bound

    def _renew(self, value: Any) -> Any:
        if isinstance(value, torch.SymInt):
            return self._size(value)
        if not isinstance(value, torch.Tensor):
            return value
        sizes, strides = [self._size(size) for size in value.shape], self._strides(value)
        with self._mode:
            return torch.empty_strided(sizes, strides, dtype=value.dtype, device=value.device)

    def _size(self, size: int | torch.SymInt) -> Any:
        polynomial = self._polynomial(size)
        expression = polynomial.xreplace(self._fresh)
        if expression.is_number:
            return int(expression)
        return self._env.create_symintnode(expression, hint=int(polynomial.xreplace(self._hint_of)))

    def _strides(self, value: torch.Tensor) -> list[Any]:
        """Strides as recorded, those that address nothing too: they tell a convolution in which memory order it writes.

        One of the latter may hold a symbol that no size gives away; it becomes what it is in an outermost dimension.
        """
        strides: list[Any] = [self._size(stride) if self._is_known(stride) else None for stride in value.stride()]
        spans = {dim: self._size(value.shape[dim]) * strides[dim] for dim, _ in _addressing(value)}
        for dim, stride in enumerate(strides):
            if stride is None:
                inner = [span for other, span in spans.items() if other > dim]
                strides[dim] = max(inner, key=_seen, default=1)
        return strides

    def _is_known(self, size: int | torch.SymInt) -> bool:
        """Whether every atom of a size or stride is bound."""
        return self._polynomial(size).free_symbols <= self._fresh.keys()


def _addressing(value: Any) -> Iterator[tuple[int, int | torch.SymInt]]:
    """Dimensions and strides of a tensor; that of a dimension of size 1 addresses nothing and is left out."""
    if isinstance(value, torch.Tensor):
        for dim, (size, stride) in enumerate(zip(value.shape, value.stride(), strict=True)):
            if not (isinstance(size, int) and size == 1):
                yield dim, stride


def _linear(place: _Place, atom: sympy.Dummy) -> BoundSymbol | None:
    """How to read ``atom`` from a size that is ``factor * atom + offset``; ``None`` when the size is anything else."""
    if place.polynomial.free_symbols != {atom}:
        return None
    polynomial = sympy.Poly(place.polynomial, atom)
    if polynomial.degree() != 1:
        return None
    factor, offset = map(int, polynomial.all_coeffs())
    return BoundSymbol(place.argument, place.dim, factor, offset, place.of_stride)


def _seen(size: int | torch.SymInt) -> int:
    return _hint(size, None) if isinstance(size, torch.SymInt) else size


def _hint(size: torch.SymInt, real: Any) -> int:
    """The size to trace with; sizes known only at run time get one that is neither 0 nor 1."""
    if real is not None:
        return int(real)
    return int(size.node.hint) if size.node.has_hint() else 8
