"""What the choice of context frames reaches: tokens of the chosen frames, and tables that belong to their places."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import sympy
import torch
import torch.fx as fx

from lightint_compile.passes.decisions.points import PlanPoint, point_of
from lightint_compile.passes.evaluate import Size, size_of
from lightint_compile.passes.program import Program, tensor_of
from lightint_compile.passes.sizes import quotient

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
    gathers = tuple(node for node in index.users if _source(node, index) is not None)
    latents = [node for node in gathers if _source(node, index) is plan.args[1]]
    chosen = reached(program.graph, [index])
    return Scope(plan, index, size, gathers, frozenset(chosen), frozenset(reached(program.graph, latents)))


def _source(node: fx.Node, index: fx.Node) -> fx.Node | None:
    """What ``node`` reads rows of with ``index``; ``None`` when it does not."""
    if node.target is aten.index_select.default and node.args[2] is index:
        return node.args[0] if isinstance(node.args[0], fx.Node) else None
    if node.target is aten.index.Tensor and [entry for entry in node.args[1] if entry is not None] == [index]:  # type: ignore[union-attr]
        return node.args[0] if isinstance(node.args[0], fx.Node) else None
    return None


def sources(scope: Scope) -> list[tuple[fx.Node, int]]:
    """The tensors that hold something of every frame, each with its frame axis."""
    found: dict[fx.Node, int] = {}
    for node in scope.gathers:
        source = _source(node, scope.index)
        assert source is not None
        if node.target is aten.index_select.default:
            axis = int(node.args[1])  # type: ignore[arg-type]
        else:
            axis = [entry is not None for entry in node.args[1]].index(True)  # type: ignore[union-attr]
        found.setdefault(source, axis)
    return list(found.items())


def reached(graph: fx.Graph, starts: Iterable[fx.Node]) -> set[fx.Node]:
    """``starts`` and everything that depends on them."""
    found = set(starts)
    for node in graph.nodes:
        if node.op != "output" and any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


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
