"""Sizes as arguments of new nodes: numbers, or arithmetic on the symbols that the program is given."""

from __future__ import annotations

import operator
from typing import TypeAlias

import sympy
import torch
import torch.fx as fx

from lightint_compile.passes.ir.fake_values import Size, hint_of, shape_of, size_of
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.rewriter import Rewriter

aten = torch.ops.aten

SizeArgument: TypeAlias = int | fx.Node
"""A size as an argument of a node: a number, or the node that computes it."""


class SizeNodes:
    """Makes arguments of sizes that are sums and products of the program's symbols.

    Rewrites have to ask in graph order: what was made for one place is given again at a later one.
    """

    def __init__(self, program: Program, rewriter: Rewriter) -> None:
        self._rewriter = rewriter
        self._symbols: dict[sympy.Symbol, tuple[fx.Node, int | None]] = {}
        self._hints: dict[sympy.Symbol, int] = {}
        self._made: dict[Size, SizeArgument] = {}
        for node in program.placeholders():
            self._note(node)

    def _note(self, node: fx.Node) -> None:
        """Note symbols that an input is, or has as the size of an axis."""
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt):
            self._add(size_of(value), value, (node, None), prefer=True)
        elif (tensor := tensor_of(node)) is not None:
            for axis, (size, given) in enumerate(zip(shape_of(tensor), tensor.shape, strict=True)):
                self._add(size, given, (node, axis))

    def _add(self, size: Size, given: object, at: tuple[fx.Node, int | None], *, prefer: bool = False) -> None:
        if isinstance(size, sympy.Symbol) and (prefer or size not in self._symbols):
            self._symbols[size] = at
            self._hints[size] = hint_of(given)

    def hint(self, size: Size) -> int | None:
        """The size at capture; ``None`` where :meth:`argument` cannot be made."""
        if isinstance(size, int):
            return size
        if not self._is_known(size):
            return None
        return int(size.xreplace(self._hints))

    def _is_known(self, size: sympy.Expr) -> bool:
        parts = sympy.preorder_traversal(size)
        return all(part in self._symbols or part.is_Integer or part.is_Add or part.is_Mul for part in parts)

    def argument(self, size: Size) -> SizeArgument:
        """The size for a new node; only for one that has a :meth:`hint`."""
        if isinstance(size, int):
            return size
        if size not in self._made:
            self._made[size] = self._compute(size)
        return self._made[size]

    def _compute(self, size: sympy.Expr) -> SizeArgument:
        if size.is_Integer:
            return int(size)
        if isinstance(size, sympy.Symbol):
            node, axis = self._symbols[size]
            return node if axis is None else self._rewriter.call(aten.sym_size.int, node, axis)
        combine = operator.add if size.is_Add else operator.mul
        result, *rest = (self.argument(size_of(part)) for part in size.args)
        for part in rest:
            result = self._rewriter.call(combine, result, part)
        return result
