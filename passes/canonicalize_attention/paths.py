"""From an operand of a product up to the tensor that it is a view, a widening or a multiple of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.fx as fx

from lightint_compile.passes.canonicalize_attention.axes import Axes, fresh_axes
from lightint_compile.passes.canonicalize_attention.layout import is_layout, transfer
from lightint_compile.passes.ir.matching import Either, Number, Var, match, op
from lightint_compile.passes.ir.op_families import is_cast
from lightint_compile.passes.ir.program import tensor_of

aten = torch.ops.aten

SCALING = Either(
    "scaling",
    times=op((aten.mul.Tensor, aten.mul.Scalar), Var("x"), Number("factor"), commutative=True),
    over=op((aten.div.Tensor, aten.div.Scalar), Var("x"), Number("factor", lambda number: number != 0)),
)


@dataclass
class Path:
    """``nodes[0]`` is the source and ``nodes[-1]`` the operand; each node is made from the one before it.

    Attributes:
        factors: what the step to ``nodes[i]`` multiplies by; 1 for the source, a layout operation and a cast.
        axes: the axes of each node, known once :meth:`interpret` has run.
    """

    nodes: list[fx.Node]
    factors: list[float]
    axes: list[Axes] = field(default_factory=list)

    @property
    def operand(self) -> fx.Node:
        """What the product reads."""
        return self.nodes[-1]

    def interpret(self) -> Axes:
        """Give the source fresh axes and follow them down; the operand's axes.

        Raises:
            AxisError: a view on the way cuts an axis where it cannot be cut.
        """
        self.axes = [fresh_axes(tuple(self.nodes[0].meta["val"].shape))]
        for node in self.nodes[1:]:
            self.axes.append(transfer(node, self.axes[-1]))
        return self.axes[-1]

    def factor(self) -> float:
        """The constant between the source and the operand."""
        return math.prod(self.factors)

    def sources(self) -> range:
        """Indices of the nodes below which nothing is multiplied: any of them can stand for the operand."""
        scaled = [index for index, factor in enumerate(self.factors) if factor != 1.0]
        return range(scaled[0] if scaled else len(self.nodes))

    def dtype(self, index: int = 0) -> torch.dtype:
        """The dtype of a node on the path; the source's is the narrowest."""
        value = tensor_of(self.nodes[index])
        assert value is not None
        return value.dtype


def path_to(operand: fx.Node, *, scaled: bool) -> Path:
    """The longest path that ends at ``operand``. With ``scaled`` it follows products with a constant as well."""
    nodes: list[fx.Node] = [operand]
    factors: list[float] = []
    while (step := _step(nodes[0], scaled)) is not None:
        before, factor = step
        nodes.insert(0, before)
        factors.insert(0, factor)
    return Path(nodes, [1.0, *factors])


def widens(node: fx.Node) -> bool:
    """Whether ``node`` casts to a dtype that holds every value of the old one."""
    if not is_cast(node):
        return False
    before, after = tensor_of(node.args[0]), tensor_of(node)
    assert before is not None and after is not None
    both_float = before.dtype.is_floating_point and after.dtype.is_floating_point
    return both_float and torch.promote_types(before.dtype, after.dtype) == after.dtype


def _step(node: fx.Node, scaled: bool) -> tuple[fx.Node, float] | None:
    if node.op != "call_function":
        return None
    if is_layout(node) or widens(node):
        before = node.args[0]
        return (before, 1.0) if tensor_of(before) is not None else None  # type: ignore[return-value]
    return scaling(node) if scaled else None


def scaling(node: fx.Node) -> tuple[fx.Node, float] | None:
    """What ``node`` multiplies by a constant, and the constant; ``None`` for any other operation."""
    found = match(SCALING, node)
    if not found or found["x"].meta["val"].dtype != node.meta["val"].dtype:
        return None
    factor = found["factor"]
    return found["x"], factor if found.tags["scaling"] == "times" else 1.0 / factor
