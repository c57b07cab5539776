"""Regions rewritten into forms for which Inductor generates good CUDA code; the mathematics is unchanged.

* A product over a few elements, such as a 4x4 camera matrix applied to every group of four channels, becomes a multiply
  and a sum, which are fused with their neighbours. As an einsum it is a batched cuBLAS call on float32 operands that go
  through memory: 23 % of the device time of a WorldPlay step.
* The input of a linear in float32 over a weight in bfloat16 is split in the graph (:mod:`.mixed_linears`).
* Padding that repeats the edges is a gather, which fuses with what is in front of it (:mod:`.edge_pads`); where it is
  joined and stored with channels last, a copy of rows (:mod:`.joined_frames`).
* Attention with heads wider than flash attention takes is two products around a softmax (:mod:`.wide_heads`).
* A tanh GELU behind a linear layer of half precision goes into the product's epilogue, which saves reading and writing
  the widest activation of a block.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.kernels import mixed_linear as _mixed_linear  # noqa: F401 - registers the operator
from lightint_compile.lowering.camera_heads import with_camera_heads
from lightint_compile.lowering.edge_pads import REPLICATION, pad_by_gather
from lightint_compile.lowering.joined_frames import join_frames
from lightint_compile.lowering.mixed_linears import split_linear
from lightint_compile.lowering.region_nodes import size_at
from lightint_compile.lowering.small_tiles import settings_for
from lightint_compile.lowering.wide_heads import attend_by_products
from lightint_compile.passes.analysis.attention_sites import ATTENTION
from lightint_compile.passes.ir.fake_values import hint_of

aten = torch.ops.aten

FEW = 8
"""Elements summed, and the shorter side of the matrices, up to which a product is small. Inductor unrolls sums of as
many (``unroll_reductions_threshold``)."""


WRITTEN_OUT: Mapping[str, Any] = {"realize_acc_reads_threshold": 16, "realize_opcount_threshold": 100}
"""Inductor's settings where products are written out: a product of 4x4 matrices and the norm in front of it read and
compute more a value than Inductor otherwise lets stay in registers."""


@dataclass(frozen=True)
class Spelled:
    """A region, and the settings of Inductor that suit its forms."""

    graph_module: fx.GraphModule
    config: Mapping[str, Any] = field(default_factory=dict)


def spelled_for_cuda(graph_module: fx.GraphModule) -> Spelled:
    """:func:`spelled`, for regions that hold CUDA tensors; others come back as they are."""
    if not any(map(_on_cuda, graph_module.graph.nodes)):
        return Spelled(graph_module)
    made = spelled(graph_module)
    return Spelled(made.graph_module, {**settings_for(graph_module), **made.config})


def spelled(graph_module: fx.GraphModule) -> Spelled:
    """A copy of a region in these forms.

    The new nodes carry no fake values: the compiler finds them. Memory layouts stay as recorded. A region writes
    to none of its inputs, so that a form may read one later than the call that it stands for.
    """
    graph_module = with_camera_heads(graph_module)
    graph, config = fx.Graph(), dict[str, Any]()
    made: dict[fx.Node, fx.Node] = {}
    for node in graph_module.graph.nodes:
        spell = _SPELLINGS.get(node.target) if node.op == "call_function" else None
        found = spell(graph, node, made) if spell else None
        if found is None:
            found = graph.node_copy(node, made.__getitem__)
            found.meta = copy.copy(node.meta)
        elif spell in (_small_einsum, _small_matmul):
            config.update(WRITTEN_OUT)
        made[node] = found
    graph.eliminate_dead_code()
    return Spelled(fx.GraphModule(graph_module, graph), config)


def _on_cuda(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.device.type == "cuda"


_Made = dict[fx.Node, fx.Node]


def _small_einsum(graph: fx.Graph, node: fx.Node, made: _Made) -> fx.Node | None:
    """An einsum of two operands that sums over few elements, as multiply and sum, in the memory order it had."""
    equation, operands = node.args[0], node.args[1]
    assert isinstance(equation, str) and isinstance(operands, (tuple, list))
    terms = _terms(equation)
    if terms is None or len(operands) != 2:
        return None
    first, second, out = terms
    sizes: dict[str, Any] = {}
    for term, operand in zip((first, second), operands, strict=True):
        assert isinstance(operand, fx.Node)
        sizes |= dict(zip(term, operand.meta["val"].shape, strict=True))
    summed = [letter for letter in first if letter not in out]
    if not summed or not _is_small(sizes, summed, first, second, out):
        return None
    strides = dict(zip(out, map(hint_of, node.meta["val"].stride()), strict=True))
    order = sorted(out, key=lambda letter: -strides[letter])
    left, right = (
        _aligned(graph, made[operand], term, [*order, *summed])
        for term, operand in zip((first, second), operands, strict=True)
    )
    total = _sum_of_products(graph, left, right, list(range(len(order), len(order) + len(summed))))
    laid_out = graph.call_function(aten.clone.default, (total,), {"memory_format": torch.contiguous_format})
    return graph.call_function(aten.permute.default, (laid_out, [order.index(letter) for letter in out]))


def _terms(equation: str) -> tuple[str, str, str] | None:
    """The three terms of a plain equation: no ellipsis, no letter twice in a term, every summed letter in both."""
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    first, comma, second = inputs.partition(",")
    plain = arrow and comma and all(term.isalpha() and len(set(term)) == len(term) for term in (first, second, out))
    if not plain or set(first) - set(out) != set(second) - set(out):
        return None
    return first, second, out


def _is_small(sizes: dict[str, Any], summed: Sequence[str], first: str, second: str, out: str) -> bool:
    sides = ([s for s in this if s in out and s not in other] for this, other in ((first, second), (second, first)))
    return _volume(sizes, summed) <= FEW and min(_volume(sizes, side) for side in sides) <= FEW


def _volume(sizes: dict[str, Any], letters: Sequence[str]) -> float:
    """Elements along ``letters``; unbounded where a size is symbolic."""
    return math.prod(sizes[s] if isinstance(sizes[s], int) else math.inf for s in letters)


def _aligned(graph: fx.Graph, operand: fx.Node, term: str, wanted: Sequence[str]) -> fx.Node:
    """``operand`` with one axis a letter of ``wanted``, of size one where its own term lacks the letter."""
    kept = [letter for letter in wanted if letter in term]
    aligned = graph.call_function(aten.permute.default, (operand, [term.index(letter) for letter in kept]))
    for place, letter in enumerate(wanted):
        if letter not in term:
            aligned = graph.call_function(aten.unsqueeze.default, (aligned, place))
    return aligned


def _sum_of_products(graph: fx.Graph, left: fx.Node, right: fx.Node, axes: list[int]) -> fx.Node:
    product = graph.call_function(aten.mul.Tensor, (left, right))
    return graph.call_function(aten.sum.dim_IntList, (product, axes))


def _small_matmul(graph: fx.Graph, node: fx.Node, made: _Made) -> fx.Node | None:
    """A matrix product (batched or not) that sums over few elements, as multiply and sum."""
    left, right = node.args[0], node.args[1]
    assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
    shapes = left.meta["val"].shape, right.meta["val"].shape
    if min(map(len, shapes)) < 2:
        return None
    sizes = {"i": shapes[0][-2], "k": shapes[0][-1], "j": shapes[1][-1]}
    if not _is_small(sizes, "k", "ik", "kj", "ij"):
        return None
    columns = graph.call_function(aten.unsqueeze.default, (made[left], -1))
    rows = graph.call_function(aten.unsqueeze.default, (made[right], -3))
    return _sum_of_products(graph, columns, rows, [-2])


def _gelu_epilogue(graph: fx.Graph, node: fx.Node, made: _Made) -> fx.Node | None:
    """tanh GELU of a linear layer that nothing else reads, as one matrix product with an epilogue."""
    linear = node.args[0]
    if node.kwargs.get("approximate") != "tanh" or not isinstance(linear, fx.Node):
        return None
    has_bias = linear.target is aten.linear.default and len(linear.args) == 3 and linear.args[2] is not None
    if not has_bias or len(linear.users) > 1 or linear.meta["val"].dtype not in (torch.bfloat16, torch.float16):
        return None
    tokens, weight, bias = (made[argument] for argument in linear.args)  # type: ignore[index]
    shape = linear.meta["val"].shape
    rows = graph.call_function(aten.reshape.default, (tokens, [-1, linear.args[1].meta["val"].shape[1]]))  # type: ignore[union-attr]
    turned = graph.call_function(aten.t.default, (weight,))
    product = graph.call_function(aten._addmm_activation.default, (bias, rows, turned), {"use_gelu": True})
    leading = [size_at(graph, tokens, axis, size) for axis, size in enumerate(shape[:-1])]
    return graph.call_function(aten.view.default, (product, [*leading, shape[-1]]))


_SPELLINGS: dict[Any, Callable[[fx.Graph, fx.Node, _Made], fx.Node | None]] = {
    aten.einsum.default: _small_einsum,
    aten.matmul.default: _small_matmul,
    aten.bmm.default: _small_matmul,
    aten.gelu.default: _gelu_epilogue,
    aten.pad.default: pad_by_gather,
    **dict.fromkeys(REPLICATION, pad_by_gather),
    torch.ops.lightint.mixed_linear.default: split_linear,
    ATTENTION: attend_by_products,
    aten.clone.default: join_frames,
}
