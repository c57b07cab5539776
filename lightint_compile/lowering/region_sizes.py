"""Example inputs for compiling one region on its own: the same shapes with fresh symbols.

A region sees sizes such as ``24*Min(20, s0)`` whose symbol ``s0`` belongs to the whole program. Compiled alone, it
needs symbols that its own inputs bind. Sizes become polynomials in as few fresh symbols as they follow from
(``elimination.py``), and the value of each is found at run time from a size that is linear in it: ``24*n + 96`` gives
``n``. Sizes that are only seen as their sum or product are one symbol. Every symbol that is no integer argument of the
region already is handed to it as one, before the rest, as Dynamo does: Inductor's caches write guards in terms of
integer arguments only.

A Python float that changes from call to call reaches a region as a tensor, since Inductor compiles for numbers as they
are, and is read from it there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import sympy
import torch
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from lightint_compile.errors import CaptureError
from lightint_compile.lowering.size_elimination import Elimination


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
class FreshSymbol:
    """How a fresh symbol is made.

    Attributes:
        number: the how many-th; its name follows from it.
        hint: the value to trace with.
        is_size: whether it is taken to be neither 0 nor 1.
    """

    number: int
    hint: int
    is_size: bool

    def made_in(self, env: ShapeEnv) -> tuple[sympy.Expr, torch.SymInt]:
        """The symbol, and the integer that it stands for."""
        source = ConstantSource(f"__region_size_{self.number}")
        create = env.create_symbol if self.is_size else env.create_unspecified_symbol
        symbol = create(self.hint, source=source, dynamic_dim=DimDynamic.DYNAMIC)
        size = env.create_symintnode(symbol, hint=self.hint, source=source)
        assert isinstance(size, torch.SymInt)
        return symbol, size


def fresh_mode() -> FakeTensorMode:
    """A mode of fake tensors that knows no symbol yet."""
    return FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)


def guard_on(mode: FakeTensorMode, symbols: Sequence[torch.SymInt]) -> str | None:
    """What is known of symbols by now, as text over ``L['t0']``, ...; ``None`` where nothing is."""
    assert mode.shape_env is not None
    found = mode.shape_env.produce_guards_expression(symbols) if symbols else None
    return None if found is None else str(found)


@dataclass(frozen=True)
class FreshInputs:
    """Fake inputs in a separate fake mode.

    Attributes:
        values: one a placeholder: fake tensors, symbolic or plain integers; a 0-d float64 one for a changing float.
        symbols: the fresh symbolic integers, in the order of ``bindings``.
        bindings: where each fresh symbol is read at run time.
        extra: positions in ``symbols`` of those that the region gets as integer arguments of their own, before
        ``values``.
        constants: sizes of 0 or 1, which code is compiled for as they are, and where they are read.
        floats: positions in ``values`` of the changing floats.
        made: how each of ``symbols`` is made.
    """

    mode: FakeTensorMode
    values: tuple[Any, ...]
    symbols: tuple[torch.SymInt, ...]
    bindings: tuple[BoundSymbol, ...]
    extra: tuple[int, ...] = ()
    constants: tuple[tuple[BoundSymbol, int], ...] = ()
    floats: tuple[int, ...] = ()
    made: tuple[FreshSymbol, ...] = ()

    def guard(self) -> str | None:
        """Under which sizes code compiled for these inputs holds: text over ``L['t0']``, ... for :meth:`guarded`."""
        return self.guard_with(guard_on(self.mode, self.symbols))

    def guard_with(self, found: str | None) -> str | None:
        """The guard where compilation ended with ``found``, as of :func:`guard_on`."""
        conditions = [found] if found else []
        conditions += [f"L['t{len(self.symbols) + i}'] == {value}" for i, (_, value) in enumerate(self.constants)]
        return " and ".join(f"({condition})" for condition in conditions) or None

    def guarded(self) -> tuple[BoundSymbol, ...]:
        """Where the sizes in the guard are read."""
        return (*self.bindings, *(bound for bound, _ in self.constants))


def fresh_inputs(values: Sequence[Any], hints: Sequence[Any] | None = None) -> FreshInputs:
    """Fake inputs like ``values`` (one a placeholder), with symbols that these inputs bind themselves.

    Args:
        hints: real arguments whose sizes replace those of the trace; they decide which guards the compilation sees.

    Raises:
        CaptureError: arguments whose sizes are not related as those of the trace are.
    """
    return _Freshener(values, hints).build()


@dataclass(frozen=True)
class _Place:
    """One size (or integer, or stride) of the region's inputs, as a polynomial in atoms."""

    polynomial: sympy.Expr
    hint: int
    argument: int
    dim: int | None
    of_stride: bool = False

    @property
    def rank(self) -> tuple[bool, bool]:
        """Sizes before strides, integer arguments before sizes."""
        return self.of_stride, self.dim is not None


class _Freshener:
    def __init__(self, values: Sequence[Any], hints: Sequence[Any] | None) -> None:
        self._values = values
        self._hints = hints
        self._mode = fresh_mode()
        assert self._mode.shape_env is not None
        self._env = self._mode.shape_env
        self._sizes = Elimination()
        self._fresh: dict[sympy.Expr, sympy.Expr] = {}
        self._hint_of: dict[sympy.Expr, int] = {}
        self._dynamic: list[tuple[torch.SymInt, BoundSymbol]] = []
        self._made: list[FreshSymbol] = []
        self._constants: list[tuple[BoundSymbol, int]] = []

    def build(self) -> FreshInputs:
        """Bind what sizes give away by themselves, then what they only give away together, and make the inputs."""
        places = [*self._places(), *self._stride_places()]
        for atom in self._sizes.atoms():
            found = [place for place in places if self._sizes.reads(place.polynomial, atom)]
            if found:
                self._bind(min(found, key=_plainness(atom)), places)
        for place in sorted(places, key=lambda place: (place.rank, len(place.polynomial.free_symbols))):
            self._bind(place, places)
        values = tuple(map(self._renew, self._values))
        extra = tuple(index for index, (_, place) in enumerate(self._dynamic) if not place.is_argument)
        symbols, bindings = tuple(s for s, _ in self._dynamic), tuple(p for _, p in self._dynamic)
        floats = tuple(index for index, value in enumerate(self._values) if isinstance(value, torch.SymFloat))
        constants, made = tuple(self._constants), tuple(self._made)
        return FreshInputs(self._mode, values, symbols, bindings, extra, constants, floats, made)

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
        return self._sizes.polynomial(size.node.expr) if isinstance(size, torch.SymInt) else sympy.Integer(size)

    def _bind(self, place: _Place, places: Sequence[_Place]) -> None:
        """A fresh symbol for what ``place`` tells that nothing before did."""
        told = self._sizes.reduced(place.polynomial)
        if self._sizes.is_known(told):
            return
        reading = self._sizes.add(told)
        bound = BoundSymbol(place.argument, place.dim, reading.factor, reading.offset, place.of_stride)
        hint, rest = divmod(place.hint - reading.offset, reading.factor)
        if rest:
            why = f"a size of {place.hint} is not {reading.factor} times a number plus {reading.offset}"
            raise CaptureError("sizes of a region's inputs are not related as they were", why=why)
        self._hint_of[reading.number] = hint
        is_size = place.dim is not None or self._is_in_a_size(place, places)
        if is_size and hint in (0, 1):
            self._fresh[reading.number] = sympy.Integer(hint)
            self._constants.append((bound, hint))
            return
        self._made.append(FreshSymbol(len(self._fresh), hint, is_size and hint > 1))
        self._fresh[reading.number], size = self._made[-1].made_in(self._env)
        self._dynamic.append((size, bound))

    def _is_in_a_size(self, argument: _Place, places: Sequence[_Place]) -> bool:
        """Whether a size of a tensor depends on an integer argument, which may else be 0, 1 or negative."""
        symbols = argument.polynomial.free_symbols
        return any(place.dim is not None and place.polynomial.free_symbols & symbols for place in places)

    def _renew(self, value: Any) -> Any:
        if isinstance(value, torch.SymInt):
            return self._size(value)
        if isinstance(value, torch.SymFloat):
            with self._mode:
                return torch.empty((), dtype=torch.float64, device="cpu")
        if not isinstance(value, torch.Tensor):
            return value
        sizes, strides = [self._size(size) for size in value.shape], self._strides(value)
        with self._mode:
            return torch.empty_strided(sizes, strides, dtype=value.dtype, device=value.device)

    def _size(self, size: int | torch.SymInt) -> Any:
        polynomial = self._sizes.reduced(self._polynomial(size))
        expression = sympy.expand(polynomial.xreplace(self._fresh))
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
        """Whether a size or stride follows from the fresh symbols."""
        return self._sizes.is_known(self._sizes.reduced(self._polynomial(size)))


def _plainness(atom: sympy.Dummy) -> Callable[[_Place], tuple[bool, bool, bool]]:
    """Sizes before strides, the symbol itself before multiples of it, integer arguments before sizes."""
    return lambda place: (place.of_stride, place.polynomial != atom, place.dim is not None)


def _addressing(value: Any) -> Iterator[tuple[int, int | torch.SymInt]]:
    """Dimensions and strides of a tensor; that of a dimension of size 1 addresses nothing and is left out."""
    if isinstance(value, torch.Tensor):
        for dim, (size, stride) in enumerate(zip(value.shape, value.stride(), strict=True)):
            if not (isinstance(size, int) and size == 1):
                yield dim, stride


def _seen(size: int | torch.SymInt) -> int:
    return _hint(size, None) if isinstance(size, torch.SymInt) else size


def _hint(size: torch.SymInt, real: Any) -> int:
    """The size to trace with; sizes known only at run time get one that is neither 0 nor 1."""
    if real is not None:
        return int(real)
    return int(cast(int, size.node.hint)) if size.node.has_hint() else 8
