"""``max(0, end - most)`` where ``end`` cannot be more than ``most``: a window that is never full begins at 0.

A cache that keeps at most so many frames is read as ``cache[:, max(0, end - most) : end]``. Where the buffer is no
longer than that, the maximum is a number, and the guards on the writes into the buffer say so; torch does not draw the
conclusion, because they bound a difference of symbols and no symbol.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sympy
import torch
from torch.utils._sympy.functions import Max


def settled(value: Any) -> Any:
    """A maximum that is a number among its operands, by the guards of the capture, as that; any other value itself."""
    expression = value.node.expr if isinstance(value, torch.SymInt) else None
    if not isinstance(expression, Max):
        return value
    numbers = [each for each in expression.args if isinstance(each, sympy.Integer)]
    others = [each for each in expression.args if not isinstance(each, sympy.Integer)]
    guards = [guard.expr for guard in value.node.shape_env.guards]
    if len(numbers) != 1 or not all(any(most <= numbers[0] for most in _bounds(each, guards)) for each in others):
        return value
    return int(numbers[0])


def _bounds(expression: sympy.Expr, guards: list[sympy.Basic]) -> Iterator[sympy.Integer]:
    """What an expression is at most, by every guard on the same terms."""
    for guard in guards:
        for relation in sympy.And.make_args(guard):
            if isinstance(relation, (sympy.Le, sympy.Lt, sympy.Ge, sympy.Gt)):
                above = sympy.expand(expression - (relation.lts - relation.gts))
                if isinstance(above, sympy.Integer):
                    yield above
