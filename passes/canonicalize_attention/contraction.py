"""One form for every way to write a sum of products: which axes of two operands are shared, and which one is summed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.fx as fx

from lightint_compile.passes.canonicalize_attention.axes import Axes, Axis, atoms, unify
from lightint_compile.passes.ir.matching import MatchError, number_of
from lightint_compile.passes.ir.op_arguments import arguments, einsum_of

aten = torch.ops.aten

_MATMULS = {aten.matmul.default, aten.bmm.default, aten.mm.default}


@dataclass(frozen=True)
class Contraction:
    """``einsum(left_axes, right_axes -> out_axes)`` with letters that are local to the node.

    Attributes:
        factor: a constant factor on the product (``alpha`` of baddbmm).
        added: a tensor added to the product, or ``None``.
        added_factor: the factor of what is added (``beta``).
    """

    node: fx.Node
    left: fx.Node
    right: fx.Node
    left_letters: str
    right_letters: str
    out_letters: str
    factor: float = 1.0
    added: fx.Node | None = None
    added_factor: float = 1.0

    def summed(self) -> str:
        """The letters that both operands have and the result has not."""
        return "".join(c for c in self.left_letters if c in self.right_letters and c not in self.out_letters)

    def axes(self, left: Axes, right: Axes) -> tuple[Axes, Axes]:
        """The axes of the result and those that are summed; learns that shared letters are one axis.

        Raises:
            AxisError: a shared axis has two sizes.
        """
        table: dict[str, Axis] = {}
        for letters, axes in ((self.left_letters, left), (self.right_letters, right)):
            for letter, axis in zip(letters, axes, strict=True):
                known = table.setdefault(letter, axis)
                if atoms(known) and atoms(axis):
                    unify(known, axis)
                elif atoms(axis):
                    table[letter] = axis
        return tuple(table[c] for c in self.out_letters), tuple(table[c] for c in self.summed())


def is_contraction(node: object) -> bool:
    """Whether ``node`` is a matrix product or an einsum of two operands."""
    if not isinstance(node, fx.Node):
        return False
    if node.target is aten.einsum.default:
        return len(node.args[1]) == 2  # type: ignore[arg-type]
    return node.target in _MATMULS or node.target is aten.baddbmm.default


def contraction_of(node: fx.Node) -> Contraction:
    """The contraction that ``node`` computes.

    Raises:
        MatchError: an operand is a vector, or the equation takes a diagonal or sums an axis of one operand only.
    """
    given = arguments(node)
    ((one, left), (other, right)), out = einsum_of(node)
    if not {"M", "N"} <= set(out) and node.target in _MATMULS:
        raise MatchError("vector-product", node, "a matrix is multiplied with a vector", "add the missing axis")
    dangling = (set(one) ^ set(other)) - set(out)
    if dangling or any(len(set(letters)) != len(letters) for letters in (one, other, out)):
        reason = f"the einsum {node.args[0]!r} takes a diagonal or sums an axis of one operand"
        raise MatchError("einsum-form", node, reason, "write the sum or the diagonal apart from the product")
    if node.target is not aten.baddbmm.default:
        return Contraction(node, left, right, one, other, out)
    beta, alpha = number_of(given["beta"]), number_of(given["alpha"])
    if beta is None or alpha is None:
        raise MatchError("scale-not-constant", node, "baddbmm is scaled by a value that is not a constant")
    # beta = 0 means that the addend is not read at all, not even where it is NaN.
    added = None if beta == 0 or number_of(given["self"]) == 0 else given["self"]
    return Contraction(node, left, right, one, other, out, alpha, added, beta)
