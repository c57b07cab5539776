"""``range(start, end)`` of two sizes that change together: as many numbers as ever, from another start.

A clip of a rollout is given the numbers of its frames as ``start`` and ``end``. Dynamo makes constants of what a range
is made of, so each clip would compile anew. Here the distance is a constant, with a guard, and the numbers count from a
symbol. What asks such a range for anything but its numbers gets Dynamo's own answer, for which it makes constants.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch._dynamo.variables.base import ValueMutationNew, VariableTracker
from torch._dynamo.variables.constant import ConstantVariable
from torch._dynamo.variables.lists import ListIteratorVariable, RangeVariable
from torch._dynamo.variables.tensor import SymNodeVariable
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols, guard_int

from lightint_compile.capture.number_operations import Arithmetic


class CountedRange(RangeVariable):
    """A range from a symbol on, of a length that is known."""

    def unpack_var_sequence(self, tx: Any = None) -> list[VariableTracker]:
        """Its numbers."""
        start, end = (each for each in self.items if isinstance(each, SymNodeVariable))
        each = Arithmetic(tx)
        places = range(guard_int(end.sym_num - start.sym_num))
        return [VariableTracker.build(tx, each(operator.add, start, place)) for place in places]

    def tp_iter_impl(self, tx: Any) -> VariableTracker:
        """An iterator over them."""
        return ListIteratorVariable(self.unpack_var_sequence(tx), mutation_type=ValueMutationNew())

    def call_method(self, tx: Any, name: str, args: Any, kwargs: Any) -> VariableTracker:
        """Dynamo's own, but for ``__iter__``: torch 2.11 asks for an iterator in this way, later ones in the other."""
        return self.tp_iter_impl(tx) if name == "__iter__" else super().call_method(tx, name, args, kwargs)


def counted(args: Sequence[VariableTracker]) -> RangeVariable | None:
    """``range(*args)`` where both ends are symbols; ``None`` for any other."""
    if len(args) != 2 or not all(map(_is_size, args)):
        return None
    return CountedRange([*args, ConstantVariable.create(1)])


def _is_size(variable: VariableTracker) -> bool:
    symbol = variable.sym_num if isinstance(variable, SymNodeVariable) else None
    return isinstance(symbol, torch.SymInt) and not free_unbacked_symbols(symbol)
