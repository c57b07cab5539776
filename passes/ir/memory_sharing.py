"""Which nodes share memory: a view shares that of its operand, any other result has new memory.

Capture traces every composite operator that shares without saying so as views, so that in the normal form the schema of
an operator is the truth (see ``lightint_compile/capture/functional.py``); :func:`~passes.ir.verify.verify` holds passes
to it.
"""

from __future__ import annotations

import operator
from functools import cache
from typing import Any

import sympy
import torch
import torch.fx as fx
import torch.utils._pytree as pytree

from lightint_compile.passes.ir.fake_values import Size, size_of


def alias_source(node: fx.Node) -> fx.Node | None:
    """The node whose memory the result of ``node`` may share, by its operator's schema; ``None`` for a fresh tensor.

    ``reshape`` or ``contiguous`` may copy or not; they count as sharing. A write hands back what it wrote to.
    """
    if node.op != "call_function":
        return None
    if node.target is operator.getitem:
        tupled = node.args[0]
        is_tuple = isinstance(tupled, fx.Node) and isinstance(tupled.meta.get("val"), (tuple, list))
        return alias_source(tupled) if is_tuple else None  # type: ignore[arg-type]
    if not isinstance(node.target, torch._ops.OpOverload) or not _returns_alias(node.target):
        return None
    source = node.args[0] if node.args else None
    return source if isinstance(source, fx.Node) else None


@cache
def _returns_alias(target: torch._ops.OpOverload) -> bool:
    return any(entry.alias_info is not None for entry in target._schema.returns)


def is_write(node: fx.Node) -> bool:
    """Whether a node writes to its first operand, whose memory it hands back."""
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and _writes(node.target)


@cache
def _writes(target: torch._ops.OpOverload) -> bool:
    return any(entry.alias_info is not None and entry.alias_info.is_write for entry in target._schema.returns)


def memory_of(node: fx.Node) -> fx.Node:
    """The node that made the memory which ``node`` may have: itself when it is no view."""
    while (source := alias_source(node)) is not None:
        node = source
    return node


def maker_of(node: fx.Node) -> fx.Node:
    """The node that computes what is in the memory of ``node``: for one of several results, the operator of all."""
    made = memory_of(node)
    while made.op == "call_function" and made.target is operator.getitem and isinstance(made.args[0], fx.Node):
        made = made.args[0]
    return made


def memory_order(value: Any) -> list[int] | None:
    """The axes of a tensor from the slowest to the fastest in memory; ``None`` where they do not fill it without gaps.

    Symbolic sizes are compared as expressions: no guard is added where they may be equal.
    """
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return None
    sizes, strides = list(map(size_of, value.shape)), list(map(size_of, value.stride()))
    found: list[int] = [axis for axis, size in enumerate(sizes) if size == 1]
    step: Size = 1
    while len(found) < len(sizes):
        axis = next((a for a in reversed(range(len(sizes))) if a not in found and strides[a] == step), None)
        if axis is None:
            return None
        found.append(axis)
        step = sympy.expand(step * sizes[axis])
    ones = found[: sum(size == 1 for size in sizes)]
    return [*ones, *reversed(found[len(ones) :])]


def output_memory(graph: fx.Graph) -> set[fx.Node]:
    """Outputs, the nodes whose memory they may share, and what computes it: what the caller may write to."""
    found: set[fx.Node] = set()
    for leaf in pytree.tree_leaves(graph.output_node().args):
        node = leaf if isinstance(leaf, fx.Node) else None
        if node is not None:
            found.add(maker_of(node))
        while node is not None and node not in found:
            found.add(node)
            node = alias_source(node)
    return found
