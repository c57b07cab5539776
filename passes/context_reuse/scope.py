"""Nodes that depend on the chosen context frames: their tokens, and tables for their positions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import sympy
import torch
import torch.fx as fx

from lightint_compile.passes.ir.decision_points import PlanPoint, point_of
from lightint_compile.passes.ir.fake_values import Size, size_of
from lightint_compile.passes.ir.graph_walk import reached
from lightint_compile.passes.ir.op_arguments import Pick, pick_of
from lightint_compile.passes.ir.program import Program, tensor_of
from lightint_compile.passes.ir.sizes import quotient

aten = torch.ops.aten


@dataclass(frozen=True)
class Scope:
    """The part of a program below the choice of context frames.

    Attributes:
        plan: the decision.
        index: its frame numbers [n].
        size: n.
        gathers: reads along the frame axis with ``index``.
        chosen: every node that depends on ``index``.
        stream: those that depend on the latents read with it.
    """

    plan: fx.Node
    index: fx.Node
    size: sympy.Expr
    gathers: tuple[fx.Node, ...]
    chosen: frozenset[fx.Node]
    stream: frozenset[fx.Node]


def scope_of(program: Program) -> Scope | None:
    """The scope of a program whose context frames are decided at run time; ``None`` for every other."""
    root = program.graph_module
    plan = next((node for node in root.graph.nodes if isinstance(point_of(root, node), PlanPoint)), None)
    if plan is None or len(plan.args) < 2:
        return None
    index = next((user for user in plan.users if user.args[1:] == (0,) and tensor_of(user) is not None), None)
    if index is None:
        return None
    tensor = tensor_of(index)
    assert tensor is not None
    size = size_of(tensor.shape[0])
    if isinstance(size, int):
        return None
    gathers = _picks(index.users, index)
    latents = [node for node, pick in gathers.items() if pick.source is plan.args[1]]
    chosen, stream = (frozenset(reached(starts, _readers)) for starts in ([index], latents))
    return Scope(plan, index, size, tuple(gathers), chosen, stream)


def _picks(nodes: Iterable[fx.Node], index: fx.Node) -> dict[fx.Node, Pick]:
    """Those of ``nodes`` that pick rows with ``index``."""
    picks = {node: pick_of(node) for node in nodes}
    return {node: pick for node, pick in picks.items() if pick is not None and pick.index is index}


def sources(scope: Scope) -> list[tuple[fx.Node, int]]:
    """The tensors that hold something of every frame, each with its frame axis."""
    found: dict[fx.Node, int] = {}
    for pick in _picks(scope.gathers, scope.index).values():
        found.setdefault(pick.source, pick.axis)
    return list(found.items())


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    return (user for user in node.users if user.op != "output")


def rows_axis(node: fx.Node, size: Size) -> int | None:
    """The one axis of a tensor whose extent is ``size`` or a multiple; ``None`` where there is none, or several."""
    tensor = tensor_of(node)
    if tensor is None:
        return None
    axes = [axis for axis, extent in enumerate(tensor.shape) if _mentions(extent, size)]
    if len(axes) != 1 or not isinstance(quotient(size_of(tensor.shape[axes[0]]), size), int):
        return None
    return axes[0]


def has_rows(node: fx.Node, size: Size) -> bool:
    """Whether any axis of a node's value depends on ``size``."""
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else (value,)
    return any(
        _mentions(extent, size)
        for entry in values
        for extent in (entry.shape if isinstance(entry, torch.Tensor) else (entry,))
    )


def _mentions(extent: int | torch.SymInt, size: Size) -> bool:
    return isinstance(extent, torch.SymInt) and bool(extent.node.expr.has(size))
