"""What a node costs: floating-point operations and bytes moved, from its fake value; no tensor is ever allocated.

A multiply-add counts as two operations. Only products are counted as FLOPs (linear, matrix products, convolution,
attention); elementwise work is given as bytes, which is what bounds it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sympy
import torch
import torch.fx as fx
import torch.utils._pytree as pytree

from lightint_compile.passes.ir.fake_values import Size, hint_of, size_of
from lightint_compile.passes.ir.op_arguments import arguments, einsum_of
from lightint_compile.passes.ir.op_families import Family
from lightint_compile.passes.ir.program import Program, tensor_of

aten = torch.ops.aten

Shape = Callable[[Any], tuple[Any, ...]]


class WorkKind(StrEnum):
    """What a node's FLOPs are spent on."""

    ATTENTION = "attention"
    LINEAR = "linear"
    CONVOLUTION = "convolution"


def flops_of(node: fx.Node) -> int:
    """FLOPs of one node, symbolic sizes at their hints; 0 for everything that is not a product."""
    return int(_flops(node, hint_of))


def flops_expression(node: fx.Node) -> Size:
    """FLOPs of one node as an expression over the symbolic sizes."""
    return _flops(node, size_of)


def flops_at(node: fx.Node, shape: Shape) -> int:
    """FLOPs of one node when it runs at other sizes than those of the capture: ``shape`` gives them for every node."""
    return int(_count(node, shape))


def kind_of(node: fx.Node) -> WorkKind | None:
    """What the node's FLOPs are spent on, ``None`` when it has none."""
    entry = _COUNTERS.get(node.target)
    if entry is not None:
        return entry[0]
    return WorkKind.ATTENTION if _sparse_arguments(node) is not None else None


@dataclass(frozen=True)
class AttentionSizes:
    """An attention in numbers: batch times heads, head_dim, tokens, and the share of the keys that is attended to."""

    rows: int
    head_dim: int
    query_tokens: int
    key_tokens: int
    density: float


def attention_sizes(node: fx.Node) -> AttentionSizes | None:
    """The sizes of a dense or sparse attention, symbolic ones at their hints; ``None`` for any other node."""
    if node.op != "call_function" or kind_of(node) is not WorkKind.ATTENTION:
        return None
    sparse = _sparse_arguments(node)
    query, keys, values = (sparse["query"], sparse["key"], sparse["value"]) if sparse else node.args[:3]
    batch, heads, queries, head_dim = _hinted(_first(query))
    tokens = sum(_hinted(segment)[-2] for segment in _segments(keys))
    dense = 2 * batch * heads * queries * tokens * (head_dim + _hinted(_first(values))[-1])
    return AttentionSizes(batch * heads, head_dim, queries, tokens, min(flops_of(node) / max(dense, 1), 1.0))


def _hinted(argument: Any) -> tuple[int, ...]:
    tensor = tensor_of(argument)
    return () if tensor is None else tuple(int(hint_of(size)) for size in tensor.shape)


def program_flops(program: Program, nodes: Iterable[fx.Node] | None = None) -> dict[str, int]:
    """FLOPs by kind, and ``total``; of the whole program or of ``nodes``."""
    totals: Counter[str] = Counter({str(kind): 0 for kind in WorkKind})
    for node in program.graph.nodes if nodes is None else nodes:
        kind = kind_of(node) if node.op == "call_function" else None
        if kind is not None:
            totals[str(kind)] += flops_of(node)
    return {**totals, "total": sum(totals.values())}


def bytes_of(node: fx.Node) -> int:
    """Bytes read and written by one node when it runs by itself; 0 for a view, which moves nothing."""
    if node.op != "call_function" or is_view(node) or not isinstance(node.target, torch._ops.OpOverload):
        return 0
    read = sum(_tensor_bytes(producer) for producer in node.all_input_nodes)
    return read + bytes_of_value(node.meta.get("val"))


def is_view(node: fx.Node) -> bool:
    """Whether the operation's result shares memory with an argument by its schema (``expand``, ``transpose``, ...)."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return True
    returns = target._schema.returns
    return bool(returns) and all(entry.alias_info is not None for entry in returns)


def _tensor_bytes(node: fx.Node) -> int:
    return bytes_of_value(node.meta.get("val"))


def bytes_of_value(value: Any) -> int:
    """Bytes of the tensors in a fake value, symbolic sizes at their hints."""
    leaves = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    return sum(math.prod(map(hint_of, leaf.shape)) * leaf.element_size() for leaf in leaves)


def _flops(node: fx.Node, size: Callable[[Any], Any]) -> Any:
    if node.op != "call_function" or (node.target not in _COUNTERS and getattr(node.target, "namespace", "") == "aten"):
        return 0

    def shape(argument: Any) -> tuple[Any, ...]:
        tensor = tensor_of(argument)
        return () if tensor is None else tuple(map(size, tensor.shape))

    return _count(node, shape)


def _count(node: fx.Node, shape: Shape) -> Any:
    entry = _COUNTERS.get(node.target) if node.op == "call_function" else None
    if entry is not None:
        return entry[1](node, shape)
    sparse = _sparse_arguments(node)
    return 0 if sparse is None else _sparse(sparse, shape)


def _product(*sizes: Any) -> Any:
    return math.prod(sizes) if all(isinstance(s, int) for s in sizes) else sympy.Mul(*sizes)


def _linear(node: fx.Node, shape: Shape) -> Any:
    """One product, in however many parts an operator computes it."""
    return _product(2, *shape(node.args[0]), shape(node.args[1])[0])


def _matmul(node: fx.Node, shape: Shape) -> Any:
    """Result elements times the contracted size; covers vectors and broadcast batches."""
    return _product(2, *shape(node), shape(node.args[0])[-1])


def _addmm(node: fx.Node, shape: Shape) -> Any:
    return _product(2, *shape(node), shape(node.args[1])[-1])


def _einsum(node: fx.Node, shape: Shape) -> Any:
    """Multiply-adds over every label once, for two operands; a single one is only summed or permuted and costs none."""
    equation = einsum_of(node)
    if len(equation.operands) != 2:
        return 0
    sizes: dict[str, Any] = {}
    for labels, operand in equation.operands:
        for label, extent in zip(labels, shape(operand), strict=True):
            if sizes.get(label, 1) == 1:
                sizes[label] = extent
    return _product(2, *sizes.values())


def _convolution(node: fx.Node, shape: Shape) -> Any:
    """Elements of the side with a window each (the result; the input when transposed) times the weights of a window."""
    transposed = node.target is aten.convolution.default and node.args[6]
    return _product(2, *shape(node.args[0] if transposed else node), *shape(node.args[1])[1:])


def _attention(node: fx.Node, shape: Shape) -> Any:
    query, key, value = (shape(argument) for argument in node.args[:3])
    return _product(2, *query[:-1], key[-2], query[-1] + value[-1])


def _sparse_arguments(node: fx.Node) -> dict[str, Any] | None:
    """The arguments by name of a ``lightint::`` attention operator, ``None`` for any other node."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "lightint":
        return None
    given = arguments(node)
    given |= {name.removesuffix("s"): given[name] for name in ("keys", "values") if name in given}
    return given if {"query", "key", "value"} <= set(given) else None


def _sparse(call: dict[str, Any], shape: Shape) -> Any:
    """Dense cost, times the densities over current and context keys when the operator states them.

    The prefix is always kept, and means of skipped tiles count where there are any.
    """
    query, value = shape(_first(call["query"])), shape(_first(call["value"]))
    keys = sum(shape(segment)[-2] for segment in _segments(call["key"]))
    prefix, density = call.get("prefix") or 0, call.get("density")
    prefix = 0 if isinstance(prefix, fx.Node) else prefix
    if isinstance(density, (int, float)):
        given = call.get("context_density")
        context = (density if given is None else given) * (keys - prefix - query[-2])
        means = (keys - prefix) / math.prod(call["tile"]) * call.get("skipped_means", 0)
        kept = density * query[-2] + context + means
        keys = prefix + (math.ceil(kept) if isinstance(kept, (int, float)) else kept)
    return _product(2, *query[:-1], keys, query[-1] + value[-1])


def _segments(argument: Any) -> list[Any]:
    return list(argument) if isinstance(argument, (list, tuple)) else [argument]


def _first(argument: Any) -> Any:
    return _segments(argument)[0]


_COUNTERS: dict[Any, tuple[WorkKind, Callable[[fx.Node, Shape], Any]]] = {
    **dict.fromkeys(Family.LINEAR.value, (WorkKind.LINEAR, _linear)),
    aten.mm.default: (WorkKind.LINEAR, _matmul),
    aten._int_mm.default: (WorkKind.LINEAR, _matmul),
    aten._scaled_mm.default: (WorkKind.LINEAR, _matmul),
    aten.bmm.default: (WorkKind.LINEAR, _matmul),
    aten.matmul.default: (WorkKind.LINEAR, _matmul),
    aten.mv.default: (WorkKind.LINEAR, _matmul),
    aten.addmm.default: (WorkKind.LINEAR, _addmm),
    aten.baddbmm.default: (WorkKind.LINEAR, _addmm),
    aten.einsum.default: (WorkKind.LINEAR, _einsum),
    aten.conv1d.default: (WorkKind.CONVOLUTION, _convolution),
    aten.conv2d.default: (WorkKind.CONVOLUTION, _convolution),
    aten.conv3d.default: (WorkKind.CONVOLUTION, _convolution),
    aten.conv1d.padding: (WorkKind.CONVOLUTION, _convolution),
    aten.conv2d.padding: (WorkKind.CONVOLUTION, _convolution),
    aten.conv3d.padding: (WorkKind.CONVOLUTION, _convolution),
    aten.convolution.default: (WorkKind.CONVOLUTION, _convolution),
    aten.scaled_dot_product_attention.default: (WorkKind.ATTENTION, _attention),
}
